# Classification on a benchmark, one job a model and seed; models with `pretrain: false` start from scratch.


rule finetune:
    input:
        benchmark=benchmark_store("{dataset}"),
        pretrained=lambda wildcards: (trained(layout.pretrained(wildcards.model))[:2] if study.models[wildcards.model].pretrain else []),
    output:
        trained(layout.finetuned("{dataset}", "{model}", "{seed}")),
    log:
        layout.log("finetune/{dataset}/{model}/seed-{seed}"),
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=8000,
        runtime=480,
        gpu=0,
    params:
        study=resolved_study,
        digest=digest("finetune"),
    message:
        "Fine-tune {wildcards.model} on {wildcards.dataset}, seed {wildcards.seed}"
    shell:
        "genomem finetune {params.study} --model {wildcards.model} --dataset {wildcards.dataset}"
        " --seed {wildcards.seed} 2>&1 | (trap '' INT TERM; tee {log})"
