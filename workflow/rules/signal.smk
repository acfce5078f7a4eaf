# Where the signal sits: the probe (before any model is trained), implicit rewards at every cut and position.
#
# Needs: data/{dataset}/pairs.parquet, data/{dataset}/tokens/{model}.parquet, models/base/, models/dpo/.
# Makes: probe/{probe}.csv, .json (its verdict), .png, .pdf
#        logprobs/base/{model}/{dataset}.parquet, logprobs/dpo/{experiment}/{truncation}/seed{seed}/{dataset}.parquet
#        signal/{implicit}.csv, signal/{implicit}/position.csv, signal/{implicit}/ranks.csv, signal/{implicit}/examples.csv


rule run_probe:
    """A linear n-gram Bradley-Terry model on heads, tails and windows, cross-validated by group."""
    input:
        pairs=lambda w: results(f"data/{STUDY.probes[w.probe].dataset}/pairs.parquet"),
        code=code("signal.probe", script="run_probe"),
    output:
        csv=results("probe/{probe}.csv"),
        summary=results("probe/{probe}.json"),
    log:
        log_of("run_probe/{probe}"),
    benchmark:
        benchmark_of("run_probe/{probe}")
    conda:
        "../../envs/core.yaml"
    resources:
        mem_mb=memory_for(8000),
        runtime=minutes_for(120),
    params:
        probe=lambda w: plain(STUDY.probes[w.probe]),
        statistics=plain(STUDY.statistics),
    script:
        "../scripts/run_probe.py"


rule draw_probe:
    """The probe's figure, from its table alone."""
    input:
        csv=results("probe/{probe}.csv"),
        summary=results("probe/{probe}.json"),
        code=code("paper.probe_figure", script="draw_probe"),
    output:
        png=report(
            results("probe/{probe}.png"),
            caption="../report/probe.rst",
            category="Probe",
            labels={"data set": "{probe}"},
        ),
        pdf=results("probe/{probe}.pdf"),
    log:
        log_of("draw_probe/{probe}"),
    conda:
        "../../envs/core.yaml"
    params:
        label=lambda w: STUDY.datasets[STUDY.probes[w.probe].dataset].label,
    script:
        "../scripts/draw_probe.py"


rule probe:
    """All probes of this run."""
    input:
        [results(f"probe/{name}.{suffix}") for name in STUDY.probe for suffix in ("csv", "png", "pdf")],


rule score_base_logprobs:
    """Log-probability of every response token under a base model, and of ending the turn at every cut: one pass."""
    input:
        models=[results("models/base/{model}")],
        tokens=results("data/{dataset}/tokens/{model}.parquet"),
        code=code("signal.logprob_files", "states", script="score_logprobs"),
    output:
        logprobs=results("logprobs/base/{model}/{dataset}.parquet"),
    log:
        log_of("score_base_logprobs/{model}/{dataset}"),
    benchmark:
        benchmark_of("score_base_logprobs/{model}/{dataset}")
    conda:
        "../../envs/core.yaml"
    resources:
        **gpus(1),
        mem_mb=memory_for(48000),
        runtime=minutes_for(60, "logprobs/base/{model}/{dataset}.parquet"),
    params:
        scoring=lambda w: logprob_params(w.dataset, w.model, base_part(w.dataset)),
    script:
        "../scripts/score_logprobs.py"


if STUDY.process_per == "model":

    rule score_dpo_logprobs:
        """The same under a DPO policy."""
        input:
            models=[results("models/dpo/{experiment}/{truncation}/seed{seed}")],
            tokens=lambda w: results(f"data/{w.dataset}/tokens/{STUDY.dpo[w.experiment].model}.parquet"),
            code=code("signal.logprob_files", "states", script="score_logprobs"),
        output:
            logprobs=results("logprobs/dpo/{experiment}/{truncation}/seed{seed}/{dataset}.parquet"),
        log:
            log_of("score_dpo_logprobs/{experiment}/{truncation}/seed{seed}/{dataset}"),
        benchmark:
            benchmark_of("score_dpo_logprobs/{experiment}/{truncation}/seed{seed}/{dataset}")
        conda:
            "../../envs/core.yaml"
        resources:
            **gpus(1),
            mem_mb=memory_for(48000),
            runtime=minutes_for(60, "logprobs/dpo/{experiment}/{truncation}/seed{seed}/{dataset}.parquet"),
        params:
            scoring=lambda w: policy_params(w.experiment, w.dataset),
        script:
            "../scripts/score_logprobs.py"

else:
    for (_e, _d), _m in read_together().items():

        rule:
            name:
                f"score_dpo_logprobs_{_e}_{_d}"
            input:
                models=[results(f"models/dpo/{_e}/{t}/seed{s}") for t, s in _m],
                tokens=results(f"data/{_d}/tokens/{STUDY.dpo[_e].model}.parquet"),
                code=code("signal.logprob_files", "states", script="score_logprobs"),
            output:
                logprobs=policy_logprobs(_e, _m, _d),
            log:
                log_of(f"score_dpo_logprobs/{_e}/{_d}"),
            benchmark:
                benchmark_of(f"score_dpo_logprobs/{_e}/{_d}")
            conda:
                "../../envs/core.yaml"
            resources:
                **gpus(1),
                mem_mb=memory_for(4000),
                runtime=minutes_for(60),
            params:
                scoring=policy_params(_e, _d),
            script:
                "../scripts/score_logprobs.py"


rule gather_implicit_rewards:
    """Accuracy of implicit rewards at every cut: arithmetic on log-probabilities."""
    input:
        policies=lambda w: implicit_policies(w.implicit),
        half1=lambda w: logprobs_read(w.implicit, "half1"),
        half2=lambda w: logprobs_read(w.implicit, "half2"),
        shuffled=lambda w: logprobs_read(w.implicit, "shuffled"),
        reference=lambda w: implicit_reference(w.implicit),
        tokens=lambda w: implicit_tokens(w.implicit),
        code=code("signal.curves", script="gather_implicit_rewards"),
    output:
        csv=results("signal/{implicit}.csv"),
    log:
        log_of("gather_implicit_rewards/{implicit}"),
    conda:
        "../../envs/core.yaml"
    params:
        implicit=lambda w: plain(STUDY.implicit_rewards[w.implicit]),
        statistics=plain(STUDY.statistics),
    script:
        "../scripts/gather_implicit_rewards.py"


rule gather_position:
    """The signal by position, how much of the whole is reached where, and how concentrated it is."""
    input:
        policies=lambda w: implicit_policies(w.implicit),
        reference=lambda w: implicit_reference(w.implicit),
        tokens=lambda w: implicit_tokens(w.implicit),
        code=code("signal.position_table", script="gather_position"),
    output:
        csv=results("signal/{implicit}/position.csv"),
    log:
        log_of("gather_position/{implicit}"),
    conda:
        "../../envs/core.yaml"
    resources:
        mem_mb=memory_for(16000),
        runtime=minutes_for(120),
    params:
        part=lambda w: STUDY.implicit_rewards[w.implicit].part,
        positions=lambda w: STUDY.implicit_rewards[w.implicit].positions,
        ratios=lambda w: STUDY.implicit_rewards[w.implicit].ratios,
        statistics=plain(STUDY.statistics),
    script:
        "../scripts/gather_position.py"


rule compare_ranks:
    """How far the policy's likeliest token is from the top of its reference's, by position, on some responses."""
    input:
        policies=lambda w: implicit_models(w.implicit)[0],
        reference=lambda w: implicit_models(w.implicit)[1],
        logprobs=lambda w: implicit_policies(w.implicit)[0],
        tokens=lambda w: implicit_tokens(w.implicit),
        code=code("signal.ranks", script="compare_ranks"),
    output:
        csv=results("signal/{implicit}/ranks.csv"),
    log:
        log_of("compare_ranks/{implicit}"),
    benchmark:
        benchmark_of("compare_ranks/{implicit}")
    conda:
        "../../envs/core.yaml"
    resources:
        **gpus(1),
        mem_mb=memory_for(64000),
        runtime=minutes_for(120),
    params:
        part=lambda w: STUDY.implicit_rewards[w.implicit].part,
        pairs=lambda w: STUDY.implicit_rewards[w.implicit].rank_pairs,
        compute=lambda w: compute_of(STUDY.implicit_rewards[w.implicit].dataset),
        positions=lambda w: STUDY.implicit_rewards[w.implicit].positions,
        statistics=plain(STUDY.statistics),
    script:
        "../scripts/compare_ranks.py"


rule choose_examples:
    """The pairs of Figure 1, with their tokens."""
    input:
        policy=lambda w: implicit_policies(w.implicit)[0],
        reference=lambda w: implicit_reference(w.implicit),
        tokens=lambda w: implicit_tokens(w.implicit),
        pairs=lambda w: results(f"data/{STUDY.implicit_rewards[w.implicit].dataset}/pairs.parquet"),
        code=code("signal.examples", script="choose_examples"),
    output:
        csv=results("signal/{implicit}/examples.csv"),
    log:
        log_of("choose_examples/{implicit}"),
    conda:
        "../../envs/core.yaml"
    resources:
        mem_mb=memory_for(16000),
        runtime=minutes_for(30),
    params:
        part=lambda w: STUDY.implicit_rewards[w.implicit].part,
    script:
        "../scripts/choose_examples.py"
