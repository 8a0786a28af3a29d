# `snakemake` finds this file; the workflow itself is workflow/Snakefile.
# An `include:` brings rules but no default target, so the target is named here again.
include: "workflow/Snakefile"


localrules:
    default,


rule default:
    default_target: True
    input:
        rules.all.input,
