# Classification on a benchmark, one job a model and seed; models with `pretrain: false` start from scratch.


rule finetune:
    input:
        benchmark=benchmark_store("{dataset}"),
        pretrained=start_of_finetuning,
    output:
        trained(layout.finetuned("{dataset}", "{model}", "{seed}")),
    log:
        layout.log("finetune/{dataset}/{model}/seed-{seed}"),
    wildcard_constraints:
        seed=one_of(study.seeds),
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
