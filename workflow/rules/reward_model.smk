# Bradley-Terry reward models at every truncation (Tables 1, 2 and 4), and their scores on the held-out pairs.
#
# Needs: data/{dataset}/shards/{model}/{truncation}/, models/base/{model}/.
# Makes: models/reward/{experiment}/{truncation}/seed{seed}/ (an ordinary checkpoint with training.json)
#        evaluations/reward/{experiment}/{truncation}/seed{seed}/heldout.parquet
#
# Where a recipe's adapter leaves a model's first layers alone, `read_trunk` keeps what they make of the tests' tokens
# until all models of the experiment have been scored from there: trunks/{experiment}/{test}.safetensors
#
# `process_per: model` is one job a model. `process_per: experiment` trains (and scores) all models of an experiment
# in one process: for models so small that starting the process would cost more than the training.


rule read_trunk:
    """What the layers that an experiment's models share make of a test set, for all of them."""
    input:
        base=lambda w: results(f"models/base/{STUDY.reward_models[w.experiment].model}"),
        shards=lambda w: [shards_for(w.experiment, "full")] if w.test == "heldout" else [],
        tokens=lambda w: tested_tokens(w.experiment, w.test),
        code=code("evaluation.score_runs", script="read_trunk"),
    output:
        states=temp(results("trunks/{experiment}/{test}.safetensors")),
    log:
        log_of("read_trunk/{experiment}/{test}"),
    benchmark:
        benchmark_of("read_trunk/{experiment}/{test}")
    conda:
        "../../envs/core.yaml"
    resources:
        **gpus(1),
        mem_mb=memory_for(32000),
        runtime=minutes_for(60, "trunks/{experiment}/{test}.safetensors"),
    params:
        layers=lambda w: STUDY.shared_layers(w.experiment),
        scoring=lambda w: scoring_params(w.experiment),
        rows=lambda w: None if w.test == "heldout" else STUDY.benchmarks[w.test].rows,
    script:
        "../scripts/read_trunk.py"


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
            trunk=lambda w: trunk_of(w.experiment, "heldout"),
            tokens=lambda w: tested_tokens(w.experiment, "heldout"),
            code=code("evaluation.score_runs", script="score_heldout"),
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
                    trunk=trunk_of(_e, "heldout"),
                    tokens=tested_tokens(_e, "heldout"),
                    code=code("evaluation.score_runs", script="score_heldout"),
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
