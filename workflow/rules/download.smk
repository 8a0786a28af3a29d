# Genomes and benchmarks from the mirror or the network. The verb itself retries, resumes and checks.
# `update` keeps Snakemake from deleting what lies there before the job: it may be the user's own file,
# and the provenance beside it tells the verb whether it is still the one that the study asks for.


rule download_genome:
    output:
        fasta=update(study.resources / "{genome_file}"),
        provenance=update(study.resources / "{genome_file}.provenance.json"),
    log:
        layout.log("download/{genome_file}"),
    wildcard_constraints:
        genome_file=one_of(GENOME_FILES),
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=240,
    params:
        study=resolved_study,
        genome=lambda wildcards: GENOME_FILES[wildcards.genome_file],
        digest=digest("download_genome"),
    message:
        "Download genome {params.genome}"
    shell:
        "genomem download {params.study} --genome {params.genome} 2>&1 | (trap '' INT TERM; tee {log})"


rule download_benchmark:
    output:
        source=update(directory(study.resources / "{benchmark_directory}")),
        provenance=update(study.resources / "{benchmark_directory}.provenance.json"),
    log:
        layout.log("download/{benchmark_directory}"),
    wildcard_constraints:
        benchmark_directory=one_of(BENCHMARK_DIRECTORIES),
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=240,
    params:
        study=resolved_study,
        dataset=lambda wildcards: BENCHMARK_DIRECTORIES[wildcards.benchmark_directory],
        digest=digest("download_benchmark"),
    message:
        "Download benchmark {params.dataset}"
    shell:
        "genomem download {params.study} --dataset {params.dataset} 2>&1 | (trap '' INT TERM; tee {log})"
