# One job makes all simulated genomes and the benchmarks that are cut from them.


rule simulate:
    output:
        genomes=[
            layout.simulated_genome(name).with_name(file)
            for name, genome in study.genomes.items()
            if genome.simulate
            for file in ("genome.fa.gz", "genes.gff3", "regions.bed")
        ],
        benchmarks=[directory(layout.simulated_benchmark(name)) for name, benchmark in study.benchmarks.items() if benchmark.simulate],
        record=layout.simulation_record,
    log:
        layout.log("simulate"),
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        study=resolved_study,
        digest=digest("simulate"),
    message:
        "Simulate genomes and benchmarks"
    shell:
        "genomem simulate {params.study} 2>&1 | (trap '' INT TERM; tee {log})"
