# Base models as ordinary checkpoints.
#
# Needs: the sources of `models` in the configuration: the hub, a folder, a package's GGUF file, or a tiny model.
# Makes: models/base/{model}/ (config, safetensors, tokenizer, chat template, source.json)


rule provide_model:
    """A base model as an ordinary checkpoint that every later step reads."""
    input:
        code=lambda w: code(model_module(w.model), script="provide_model"),
    output:
        folder=directory(results("models/base/{model}")),
    log:
        log_of("provide_model/{model}"),
    benchmark:
        benchmark_of("provide_model/{model}")
    conda:
        "../../envs/core.yaml"
    resources:
        mem_mb=memory_for(16000),
        runtime=minutes_for(120),
    params:
        source=lambda w: plain(STUDY.models[w.model].source),
        pins=lambda w: pins_of(STUDY.models[w.model].source),
    script:
        "../scripts/provide_model.py"
