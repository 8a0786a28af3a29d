# One HTML file from all records.


rule report:
    input:
        origins=origins(),
        manifests=manifests(),
        pretrained=[
            file
            for model in study.pretrained_models
            for seed in study.pretrain.seeds
            for file in trained(layout.pretrained(model, seed))[2:]
        ],
        language=[layout.language(model) for model in study.language_models],
        markov=layout.markov if study.language_models else [],
        comparison=layout.comparison if study.compared_models else [],
        recall=[layout.recall(model) for model in study.recall_models],
        finetuned=[
            file
            for dataset in study.benchmarks
            for model in study.classifiers
            for seed in study.seeds
            for file in trained(layout.finetuned(dataset, model, seed))[2:]
        ],
        controls=[layout.controls(dataset) for dataset in study.benchmarks],
        classification=[layout.classification(dataset, model) for dataset in study.benchmarks for model in study.classifiers],
    output:
        page=report(
            layout.report,
            caption="../report/report.rst",
            category="Report",
            labels={"page": "benchmark report"},
        ),
        figures=report(
            layout.report.with_suffix(".json"),
            caption="../report/figures.rst",
            category="Report",
            labels={"page": "all figures as JSON"},
        ),
    log:
        layout.log("report"),
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        study=resolved_study,
        digest=digest("report"),
    message:
        "Write the report"
    shell:
        "genomem report {params.study} 2>&1 | (trap '' INT TERM; tee {log})"
