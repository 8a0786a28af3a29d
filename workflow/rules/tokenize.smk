# FASTA and labelled sequences -> memory-mapped stores.


rule tokenize_genome:
    input:
        lambda wildcards: layout.genome_fasta(wildcards.genome),
    output:
        genome_store("{genome}"),
    log:
        layout.log("tokenize/genomes/{genome}"),
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        study=resolved_study,
        digest=digest("tokenize_genome"),
    message:
        "Tokenize genome {wildcards.genome}"
    shell:
        "genomem tokenize {params.study} --genome {wildcards.genome} 2>&1 | (trap '' INT TERM; tee {log})"


rule tokenize_benchmark:
    input:
        lambda wildcards: layout.benchmark_source(wildcards.dataset),
    output:
        benchmark_store("{dataset}"),
    log:
        layout.log("tokenize/benchmarks/{dataset}"),
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        study=resolved_study,
        digest=digest("tokenize_benchmark"),
    message:
        "Tokenize benchmark {wildcards.dataset}"
    shell:
        "genomem tokenize {params.study} --dataset {wildcards.dataset} 2>&1 | (trap '' INT TERM; tee {log})"
