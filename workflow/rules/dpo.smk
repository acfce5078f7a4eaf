# DPO policies at every truncation. The base model is the reference: its log-probabilities come from one pass over whole
# responses and are shared by all truncations.
#
# Needs: data/{dataset}/shards/{model}/{truncation}/, models/base/{model}/, logprobs/base/{model}/{dataset}.parquet.
# Makes: models/dpo/{experiment}/{truncation}/seed{seed}/ (an ordinary checkpoint with training.json)

if STUDY.process_per == "model":

    rule train_dpo:
        """One DPO policy."""
        input:
            shards=lambda w: [dpo_shards(w.experiment, w.truncation)],
            base=lambda w: results(f"models/base/{STUDY.dpo[w.experiment].model}"),
            reference=lambda w: reference_logprobs(w.experiment),
            code=code("training.launch_dpo", "states", script="train_dpo"),
        output:
            folders=directory(results("models/dpo/{experiment}/{truncation}/seed{seed}")),
        log:
            log_of("train_dpo/{experiment}/{truncation}/seed{seed}"),
        benchmark:
            benchmark_of("train_dpo/{experiment}/{truncation}/seed{seed}")
        conda:
            lambda w: dpo_environment(w.experiment)
        resources:
            **gpus(8),
            mem_mb=memory_for(32000, gpus=8),
            runtime=minutes_for(120, "models/dpo/{experiment}/{truncation}/seed{seed}", gpus=8),
        params:
            training=lambda w: dpo_params(w.experiment),
            members=lambda w: [(w.truncation, int(w.seed))],
        script:
            "../scripts/train_dpo.py"

else:
    for _e in dpo_experiments():

        rule:
            name:
                f"train_dpo_{_e}"
            input:
                shards=[dpo_shards(_e, t) for t, s in dpo_members(_e)],
                base=results(f"models/base/{STUDY.dpo[_e].model}"),
                reference=reference_logprobs(_e),
                code=code("training.launch_dpo", "states", script="train_dpo"),
            output:
                folders=[directory(results(f"models/dpo/{_e}/{t}/seed{s}")) for t, s in dpo_members(_e)],
            log:
                log_of(f"train_dpo/{_e}"),
            benchmark:
                benchmark_of(f"train_dpo/{_e}")
            conda:
                dpo_environment(_e)
            resources:
                **gpus(1),
                mem_mb=memory_for(4000),
                runtime=minutes_for(60),
            params:
                training=dpo_params(_e),
                members=dpo_members(_e),
            script:
                "../scripts/train_dpo.py"
