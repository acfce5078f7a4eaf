# Bradley-Terry reward models at every truncation (Tables 1, 2 and 4), and their scores on the held-out pairs.
#
# Needs: data/{dataset}/shards/{model}/{truncation}/, models/base/{model}/.
# Makes: models/reward/{experiment}/{truncation}/seed{seed}/ (an ordinary checkpoint with training.json)
#        evaluations/reward/{experiment}/{truncation}/seed{seed}/heldout.parquet
#
# `process_per: model` is one job a model. `process_per: experiment` trains (and scores) all models of an experiment
# in one process: for models so small that starting the process would cost more than the training.


def model_folder(experiment, truncation, seed):
    return results(f"models/reward/{experiment}/{truncation}/seed{seed}")


def shards_for(experiment, truncation):
    spec = STUDY.reward_models[experiment]
    return results(f"data/{spec.dataset}/shards/{spec.model}/{truncation}")


def training_params(experiment):
    """What the training of an experiment's models depends on, besides its inputs."""
    spec = STUDY.reward_models[experiment]
    return {"recipe": plain(STUDY.reward_recipes[spec.recipe]), "bos": STUDY.models[spec.model].bos}


def scoring_params(experiment):
    """What the scoring of an experiment's models depends on, besides its inputs."""
    recipe = STUDY.reward_recipes[STUDY.reward_models[experiment].recipe]
    keys = ("max_length", "end_of_turn", "compute", "attention")
    return {**{key: getattr(recipe, key) for key in keys}, "cuts": STUDY.cuts}


def heldout_shards(experiment, truncations):
    """Held-out pairs, whole and as each truncation keeps them."""
    cut = [t for t in truncations if not parse_truncation(t).keeps_text]
    return [shards_for(experiment, t) for t in ["full", *cut]]


if STUDY.process_per == "model":

    rule train_reward_model:
        """One reward model."""
        input:
            shards=lambda w: [shards_for(w.experiment, w.truncation)],
            base=lambda w: results(f"models/base/{STUDY.reward_models[w.experiment].model}"),
            code=code("training.launch"),
        output:
            folders=directory(results("models/reward/{experiment}/{truncation}/seed{seed}")),
        log:
            log_of("train_reward_model/{experiment}/{truncation}/seed{seed}"),
        benchmark:
            benchmark_of("train_reward_model/{experiment}/{truncation}/seed{seed}")
        params:
            training=lambda w: training_params(w.experiment),
            members=lambda w: [(w.truncation, int(w.seed))],
        resources:
            mem_mb=resources_for(32000),
            runtime=resources_for(720),
        conda:
            "../../envs/core.yaml"
        script:
            "../scripts/train_reward_models.py"

    rule score_heldout:
        """Scores of one reward model on the held-out pairs: whole, at every cut, and as its training set was cut."""
        input:
            models=results("models/reward/{experiment}/{truncation}/seed{seed}"),
            shards=lambda w: heldout_shards(w.experiment, [w.truncation]),
            tokens=lambda w: results(
                f"data/{STUDY.reward_models[w.experiment].dataset}/tokens/"
                f"{STUDY.reward_models[w.experiment].model}.parquet"
            ),
            code=code("evaluation.scores"),
        output:
            scores=results("evaluations/reward/{experiment}/{truncation}/seed{seed}/heldout.parquet"),
        log:
            log_of("score_heldout/{experiment}/{truncation}/seed{seed}"),
        benchmark:
            benchmark_of("score_heldout/{experiment}/{truncation}/seed{seed}")
        params:
            scoring=lambda w: scoring_params(w.experiment),
            members=lambda w: [(w.truncation, int(w.seed))],
        resources:
            mem_mb=resources_for(32000),
            runtime=resources_for(240),
        conda:
            "../../envs/core.yaml"
        script:
            "../scripts/score_heldout.py"

else:
    for _e in reward_experiments():
        _members = members_of(_e)
        _spec = STUDY.reward_models[_e]

        rule:
            name:
                f"train_reward_models_{_e}"
            input:
                shards=[shards_for(_e, t) for t, s in _members],
                base=results(f"models/base/{_spec.model}"),
                code=code("training.launch"),
            output:
                folders=[directory(model_folder(_e, t, s)) for t, s in _members],
            log:
                log_of(f"train_reward_models/{_e}"),
            benchmark:
                benchmark_of(f"train_reward_models/{_e}")
            params:
                training=training_params(_e),
                members=_members,
            resources:
                mem_mb=resources_for(4000),
                runtime=resources_for(60),
            conda:
                "../../envs/core.yaml"
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
                    code=code("evaluation.scores"),
                output:
                    scores=[
                        results(f"evaluations/reward/{_e}/{t}/seed{s}/heldout.parquet") for t, s in _members
                    ],
                log:
                    log_of(f"score_heldout/{_e}"),
                benchmark:
                    benchmark_of(f"score_heldout/{_e}")
                params:
                    scoring=scoring_params(_e),
                    members=_members,
                resources:
                    mem_mb=resources_for(4000),
                    runtime=resources_for(60),
                conda:
                    "../../envs/core.yaml"
                script:
                    "../scripts/score_heldout.py"
