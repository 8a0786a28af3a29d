# Language modelling, of the next base or of masked bases, one job a model and seed.
# Checkpoints are no output: Snakemake deletes outputs before it runs a job again, and a resumed job needs them.
# Several processes (`--set-resources pretrain:processes=4`, or a profile) run under torchrun on one machine.


rule pretrain:
    input:
        GENOME_STORES,
    output:
        trained(layout.pretrained("{model}", "{seed}")),
    log:
        layout.log("pretrain/{model}/seed-{seed}"),
    wildcard_constraints:
        seed=one_of(study.pretrain.seeds),
    # The longest way through a study starts here, so it starts first.
    priority: 50
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=8000,
        runtime=1440,
        gpu=0,
        processes=1,
    params:
        study=resolved_study,
        digest=digest("pretrain"),
        run=lambda wildcards, resources: launcher(resources.processes),
    message:
        "Pretrain {wildcards.model}, seed {wildcards.seed}"
    shell:
        "{params.run} pretrain {params.study} --model {wildcards.model} --seed {wildcards.seed} 2>&1 | (trap '' INT TERM; tee {log})"
