# Bradley-Terry reward models at every truncation (Tables 1, 2 and 4), and their scores on the held-out pairs.
#
# Needs: data/{dataset}/shards/{model}/{truncation}/, models/base/{model}/.
# Makes: models/reward/{experiment}/{truncation}/seed{seed}/ (an ordinary checkpoint with training.json)
#        evaluations/reward/{experiment}/{truncation}/seed{seed}/heldout.parquet
#
# `process_per: model` is one job a model. `process_per: experiment` trains (and scores) all models of an experiment
# in one process: for models so small that starting the process would cost more than the training.


if STUDY.process_per == "model":

    rule train_reward_model:
        """One reward model."""
        input:
            shards=lambda w: [shards_for(w.experiment, w.truncation)],
            base=lambda w: results(f"models/base/{STUDY.reward_models[w.experiment].model}"),
            code=code("training.launch", "states", script="train_reward_models"),
        output:
            folders=directory(results("models/reward/{experiment}/{truncation}/seed{seed}")),
        log:
            log_of("train_reward_model/{experiment}/{truncation}/seed{seed}"),
        benchmark:
            benchmark_of("train_reward_model/{experiment}/{truncation}/seed{seed}")
        conda:
            lambda w: reward_environment(w.experiment)
        resources:
            **gpus(8),
            mem_mb=memory_for(32000, gpus=8),
            runtime=minutes_for(120, "models/reward/{experiment}/{truncation}/seed{seed}", gpus=8),
        params:
            training=lambda w: training_params(w.experiment),
            members=lambda w: [(w.truncation, int(w.seed))],
        script:
            "../scripts/train_reward_models.py"

    rule score_heldout:
        """Scores of one reward model on the held-out pairs: whole, at every cut, and as its training set was cut."""
        input:
            models=[results("models/reward/{experiment}/{truncation}/seed{seed}")],
            shards=lambda w: heldout_shards(w.experiment, [w.truncation]),
            tokens=lambda w: results(
                f"data/{STUDY.reward_models[w.experiment].dataset}/tokens/"
                f"{STUDY.reward_models[w.experiment].model}.parquet"
            ),
            code=code("evaluation.scores", script="score_heldout"),
        output:
            scores=results("evaluations/reward/{experiment}/{truncation}/seed{seed}/heldout.parquet"),
        log:
            log_of("score_heldout/{experiment}/{truncation}/seed{seed}"),
        benchmark:
            benchmark_of("score_heldout/{experiment}/{truncation}/seed{seed}")
        conda:
            "../../envs/core.yaml"
        resources:
            **gpus(1),
            mem_mb=memory_for(32000),
            runtime=minutes_for(60, "evaluations/reward/{experiment}/{truncation}/seed{seed}/heldout.parquet"),
        params:
            scoring=lambda w: scoring_params(w.experiment),
            members=lambda w: [(w.truncation, int(w.seed))],
        script:
            "../scripts/score_heldout.py"

else:
    for _e in trained_experiments():
        _members = members_of(_e)
        _spec = STUDY.reward_models[_e]

        rule:
            name:
                f"train_reward_models_{_e}"
            input:
                shards=[shards_for(_e, t) for t, s in _members],
                base=results(f"models/base/{_spec.model}"),
                code=code("training.launch", "states", script="train_reward_models"),
            output:
                folders=[directory(model_folder(_e, t, s)) for t, s in _members],
            log:
                log_of(f"train_reward_models/{_e}"),
            benchmark:
                benchmark_of(f"train_reward_models/{_e}")
            conda:
                reward_environment(_e)
            resources:
                **gpus(1),
                mem_mb=memory_for(4000),
                runtime=minutes_for(60),
            params:
                training=training_params(_e),
                members=_members,
            script:
                "../scripts/train_reward_models.py"

        if _spec.heldout:

            rule:
                name:
                    f"score_heldout_{_e}"
                input:
                    models=[model_folder(_e, t, s) for t, s in _members],
                    shards=heldout_shards(_e, _spec.truncations),
                    tokens=results(f"data/{_spec.dataset}/tokens/{_spec.model}.parquet"),
                    code=code("evaluation.scores", script="score_heldout"),
                output:
                    scores=[
                        results(f"evaluations/reward/{_e}/{t}/seed{s}/heldout.parquet") for t, s in _members
                    ],
                log:
                    log_of(f"score_heldout/{_e}"),
                benchmark:
                    benchmark_of(f"score_heldout/{_e}")
                conda:
                    "../../envs/core.yaml"
                resources:
                    **gpus(1),
                    mem_mb=memory_for(4000),
                    runtime=minutes_for(60),
                params:
                    scoring=scoring_params(_e),
                    members=_members,
                script:
                    "../scripts/score_heldout.py"
