# Raw preference data to truncated shards.
#
# Needs: the sources of `datasets` in the configuration; the base models' tokenizers.
# Makes: data/{dataset}/pairs.parquet (+ quarantine.parquet, manifest.json)
#        data/{dataset}/tokens/{model}.parquet
#        data/{dataset}/shards/{model}/{truncation}/
#        data/instructions/{instructions}.parquet (+ .json)
#
# `process_per: model` writes one truncation a job, `process_per: experiment` all of a data set that the run uses.


rule write_config:
    """The merged, validated configuration, beside the results."""
    input:
        code=code("files", script="write_config"),
    output:
        results("config.yaml"),
    log:
        log_of("config"),
    conda:
        "../../envs/core.yaml"
    params:
        study=plain(STUDY),
    script:
        "../scripts/write_config.py"


rule ingest_dataset:
    """A source's rows as pairs; what can't be one goes to the quarantine with its reason."""
    input:
        source=source_file,
        code=code("data.ingest", script="ingest_dataset"),
    output:
        pairs=results("data/{dataset}/pairs.parquet"),
        quarantine=results("data/{dataset}/quarantine.parquet"),
        manifest=results("data/{dataset}/manifest.json"),
    log:
        log_of("ingest_dataset/{dataset}"),
    benchmark:
        benchmark_of("ingest_dataset/{dataset}")
    conda:
        "../../envs/core.yaml"
    resources:
        mem_mb=memory_for(8000),
        runtime=minutes_for(60),
    params:
        dataset=lambda w: plain(STUDY.datasets[w.dataset]),
        data_root=lambda w: STUDY.data_root,
        pins=lambda w: pins_of(STUDY.datasets[w.dataset].source),
    script:
        "../scripts/ingest_dataset.py"


rule tokenize_pairs:
    """Every prompt and response as tokens of one base model, once; all truncations are slices of these."""
    input:
        pairs=results("data/{dataset}/pairs.parquet"),
        model=results("models/base/{model}"),
        code=code("models.tokens", script="tokenize_pairs"),
    output:
        tokens=results("data/{dataset}/tokens/{model}.parquet"),
        manifest=results("data/{dataset}/tokens/{model}.json"),
    log:
        log_of("tokenize_pairs/{dataset}/{model}"),
    benchmark:
        benchmark_of("tokenize_pairs/{dataset}/{model}")
    conda:
        "../../envs/core.yaml"
    resources:
        mem_mb=memory_for(16000),
        runtime=minutes_for(60),
    params:
        bos=lambda w: STUDY.models[w.model].bos,
    script:
        "../scripts/tokenize_pairs.py"


# Truncations of a data set, as chat pairs and as token ids.
for _place, _dataset, _model, _truncations in shard_jobs():

    rule:
        name:
            "write_shards" if STUDY.process_per == "model" else f"write_shards_{_dataset}_{_model}"
        input:
            tokens=results(f"data/{_dataset}/tokens/{_model}.parquet"),
            pairs=results(f"data/{_dataset}/pairs.parquet"),
            model=results(f"models/base/{_model}"),
            code=code("data.shards", script="write_shards"),
        output:
            shards=[directory(results(f"data/{_dataset}/shards/{_model}/{t}")) for t in _truncations],
        log:
            log_of(f"write_shards/{_place}"),
        benchmark:
            benchmark_of(f"write_shards/{_place}")
        conda:
            "../../envs/core.yaml"
        resources:
            mem_mb=memory_for(8000),
            runtime=minutes_for(30),
        params:
            truncations=_truncations,
        script:
            "../scripts/write_shards.py"


rule prepare_instructions:
    """A set of prompts to generate from."""
    input:
        pairs=instruction_pairs,
        source=instruction_file,
        code=code("data.instructions", script="prepare_instructions"),
    output:
        instructions=results("data/instructions/{instructions}.parquet"),
        counts=results("data/instructions/{instructions}.json"),
    log:
        log_of("prepare_instructions/{instructions}"),
    conda:
        "../../envs/core.yaml"
    resources:
        mem_mb=memory_for(4000),
        runtime=minutes_for(30),
    params:
        instructions=lambda w: plain(STUDY.instructions[w.instructions]),
        data_root=lambda w: STUDY.data_root,
        pins=lambda w: pins_of(STUDY.instructions[w.instructions].source),
    script:
        "../scripts/prepare_instructions.py"
