# The final evaluation: held-out chromosomes and test sets, each beside what it is judged against.


rule evaluate_markov:
    input:
        GENOME_STORES,
    output:
        record=layout.markov,
        scores=layout.markov_scores,
    log:
        layout.log("evaluate/markov"),
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=16000,
        runtime=240,
    params:
        study=resolved_study,
        digest=digest("evaluate_markov"),
    message:
        "Fit Markov models and score the held-out chromosomes"
    shell:
        "genomem evaluate markov {params.study} 2>&1 | (trap '' INT TERM; tee {log})"


rule evaluate_language:
    input:
        stores=GENOME_STORES,
        models=[file for seed in study.pretrain.seeds for file in trained(layout.pretrained("{model}", seed))[:2]],
        markov=rules.evaluate_markov.output,
    output:
        record=report(
            layout.language("{model}"),
            caption="../report/language.rst",
            category="Held-out chromosomes",
            labels={"model": "{model}"},
        ),
        blocks=layout.language_blocks("{model}"),
    log:
        layout.log("evaluate/language/{model}"),
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=8000,
        runtime=240,
        gpu=0,
    params:
        study=resolved_study,
        digest=digest("evaluate_language"),
    message:
        "Score the held-out chromosomes with {wildcards.model}"
    shell:
        "genomem evaluate language {params.study} --model {wildcards.model} 2>&1 | (trap '' INT TERM; tee {log})"


if study.compared_models:

    rule evaluate_comparison:
        input:
            records=[layout.language(model) for model in study.language_models],
            blocks=[layout.language_blocks(model) for model in study.language_models],
        output:
            report(
                layout.comparison,
                caption="../report/comparison.rst",
                category="Held-out chromosomes",
                labels={"model": "differences from the baseline"},
            ),
        log:
            layout.log("evaluate/comparison"),
        conda:
            "../../envs/cpu.yaml"
        threads: 1
        resources:
            mem_mb=4000,
            runtime=60,
        params:
            study=resolved_study,
            digest=digest("evaluate_comparison"),
        message:
            "Compare the language models with the baseline"
        shell:
            "genomem evaluate comparison {params.study} 2>&1 | (trap '' INT TERM; tee {log})"


rule evaluate_recall:
    input:
        stores=GENOME_STORES,
        models=[file for seed in study.pretrain.seeds for file in trained(layout.pretrained("{model}", seed))[:2]],
    output:
        report(
            layout.recall("{model}"),
            caption="../report/recall.rst",
            category="Held-out chromosomes",
            labels={"model": "{model}, recall of a repeat"},
        ),
    log:
        layout.log("evaluate/recall/{model}"),
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=8000,
        runtime=120,
        gpu=0,
    params:
        study=resolved_study,
        digest=digest("evaluate_recall"),
    message:
        "Recall of a repeat by {wildcards.model}"
    shell:
        "genomem evaluate recall {params.study} --model {wildcards.model} 2>&1 | (trap '' INT TERM; tee {log})"


rule evaluate_controls:
    input:
        benchmark_store("{dataset}"),
    output:
        report(
            layout.controls("{dataset}"),
            caption="../report/controls.rst",
            category="Benchmarks",
            labels={"dataset": "{dataset}", "model": "controls"},
        ),
    log:
        layout.log("evaluate/controls/{dataset}"),
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=8000,
        runtime=120,
    params:
        study=resolved_study,
        digest=digest("evaluate_controls"),
    message:
        "Controls and leaks of {wildcards.dataset}"
    shell:
        "genomem evaluate controls {params.study} --dataset {wildcards.dataset} 2>&1 | (trap '' INT TERM; tee {log})"


rule evaluate_classification:
    input:
        benchmark=benchmark_store("{dataset}"),
        models=[file for seed in study.seeds for file in trained(layout.finetuned("{dataset}", "{model}", seed))[:2]],
    output:
        report(
            layout.classification("{dataset}", "{model}"),
            caption="../report/classification.rst",
            category="Benchmarks",
            labels={"dataset": "{dataset}", "model": "{model}"},
        ),
    log:
        layout.log("evaluate/classification/{dataset}/{model}"),
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=8000,
        runtime=120,
        gpu=0,
    params:
        study=resolved_study,
        digest=digest("evaluate_classification"),
    message:
        "Test {wildcards.model} on {wildcards.dataset}"
    shell:
        "genomem evaluate classification {params.study} --dataset {wildcards.dataset}"
        " --model {wildcards.model} 2>&1 | (trap '' INT TERM; tee {log})"
