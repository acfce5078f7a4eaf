# Scores of reward models on benchmarks: fixed pairs with subsets (RewardBench, or the planted world's).
#
# Needs: models/reward/{experiment}/{truncation}/seed{seed}/, data/{benchmark data set}/tokens/{model}.parquet.
# Makes: evaluations/reward/{experiment}/{truncation}/seed{seed}/{benchmark}.parquet


if STUDY.process_per == "model":

    rule score_benchmark:
        """Scores of one reward model on one benchmark, whole and at every cut, row by row."""
        input:
            models=[results("models/reward/{experiment}/{truncation}/seed{seed}")],
            tokens=lambda w: tested_tokens(w.experiment, w.benchmark),
            trunk=lambda w: trunk_of(w.experiment, w.benchmark),
            code=code("evaluation.score_runs", script="score_benchmark"),
        output:
            scores=results("evaluations/reward/{experiment}/{truncation}/seed{seed}/{benchmark}.parquet"),
        log:
            log_of("score_benchmark/{experiment}/{truncation}/seed{seed}/{benchmark}"),
        benchmark:
            benchmark_of("score_benchmark/{experiment}/{truncation}/seed{seed}/{benchmark}")
        conda:
            "../../envs/core.yaml"
        resources:
            **gpus(1),
            mem_mb=memory_for(32000),
            runtime=minutes_for(
                60, "evaluations/reward/{experiment}/{truncation}/seed{seed}/{benchmark}.parquet"
            ),
        params:
            scoring=lambda w: scoring_params(w.experiment),
            rows=lambda w: STUDY.benchmarks[w.benchmark].rows,
        script:
            "../scripts/score_benchmark.py"

else:
    for _e in reward_experiments():
        for _b in STUDY.reward_models[_e].benchmarks:

            rule:
                name:
                    f"score_{_b}_{_e}"
                input:
                    models=[model_folder(_e, t, s) for t, s in members_of(_e)],
                    tokens=tested_tokens(_e, _b),
                    trunk=trunk_of(_e, _b),
                    code=code("evaluation.score_runs", script="score_benchmark"),
                output:
                    scores=[
                        results(f"evaluations/reward/{_e}/{t}/seed{s}/{_b}.parquet")
                        for t, s in members_of(_e)
                    ],
                log:
                    log_of(f"score_benchmark/{_e}/{_b}"),
                benchmark:
                    benchmark_of(f"score_benchmark/{_e}/{_b}")
                conda:
                    "../../envs/core.yaml"
                resources:
                    **gpus(1),
                    mem_mb=memory_for(4000),
                    runtime=minutes_for(60),
                params:
                    scoring=scoring_params(_e),
                    rows=STUDY.benchmarks[_b].rows,
                script:
                    "../scripts/score_benchmark.py"
