# What the rules of controlled decoding ask of the configuration. Functions only.


def decoding_policy(name):
    """The checkpoint of a decoding's policy: a DPO experiment's first model of full responses, or a base model."""
    policy = STUDY.decoding[name].policy
    return trained_policy(policy) if policy in STUDY.dpo else results(f"models/base/{policy}")


def trained_policy(experiment):
    """The first seed's policy of a DPO experiment, trained on full responses."""
    return results(f"models/dpo/{experiment}/full/seed{STUDY.dpo[experiment].seeds_of('full')[0]}")


def decoding_base(name):
    """The name of a decoding's reference."""
    spec = STUDY.decoding[name]
    return spec.reference or STUDY.dpo[spec.policy].model


def decoding_params(name, controlled=True):
    """What a decoding's responses depend on, besides its models and instructions; not `controlled`: the policy's."""
    spec = STUDY.decoding[name]
    recipe = STUDY.dpo_recipes[STUDY.dpo[spec.policy].recipe] if spec.policy in STUDY.dpo else None
    keys = ("mixing", "length_control", "kl_threshold", "fallback", "monte_carlo")
    return {
        **{key: getattr(spec, key) for key in ("samples", "max_new_tokens", "seed", "batch")},
        "controls": {key: getattr(spec, key) for key in keys} if controlled else None,
        "bos": STUDY.models[decoding_base(name)].bos,
        "compute": recipe.compute if recipe else "auto",
    }


def text_params(name):
    """How a decoding's models read given texts."""
    spec = STUDY.decoding[name]
    kept = {key: value for key, value in decoding_params(name).items() if key in ("seed", "batch", "compute")}
    return {**kept, "rows": spec.text_rows, "prefix": spec.prefix, "max_new_tokens": spec.max_new_tokens}


def decoding_label(name):
    spec = STUDY.decoding[name]
    return spec.label or STUDY.instructions[spec.instructions].label


def decoded_file(name, run):
    """A file of responses of a decoding: its own (`responses`), or those of a policy trained again."""
    return results(f"decoding/{name}/{'responses' if run == 'responses' else f'retrained/{run}'}.parquet")


def effective_mixing(name):
    """For each policy trained again the coefficient a that it stands for: beta of the policy over its own."""
    spec = STUDY.decoding[name]

    def beta(experiment):
        return STUDY.dpo_recipes[STUDY.dpo[experiment].recipe].beta

    return {e: round(beta(spec.policy) / beta(e), 6) for e in spec.retrained}


def tradeoff_rows():
    """What Figure 4 and its table need to know of each decoding."""
    rows = []
    for name in STUDY.figures.figure4:
        runs = ["responses", *STUDY.decoding[name].retrained]
        rows.append(
            {
                "label": decoding_label(name),
                "runs": [decoded_file(name, run) for run in runs],
                "rewards": [results(f"decoding/{name}/rewards/{run}.parquet") for run in runs],
                "retrained": effective_mixing(name),
            }
        )
    return rows


def kl_rows():
    """What Figure 3 needs to know of each decoding."""
    return [
        {
            "label": decoding_label(name),
            "responses": results(f"decoding/{name}/responses.parquet"),
            "texts": results(f"decoding/{name}/texts.parquet") if STUDY.decoding[name].texts else None,
        }
        for name in STUDY.figures.figure3
    ]


def planted_decodings():
    """Label and profile of the decodings of planted sets whose qualities do not persist: KL must sit as planted.

    Where a sentence is as good as the one before it, early and late sentences earn the same reward.
    """
    found = {}
    for name in STUDY.figures.figure3:
        policy = STUDY.decoding[name].policy
        source = STUDY.datasets[STUDY.dpo[policy].dataset].source if policy in STUDY.dpo else None
        if source is None or source.kind != "planted" or source.persistence:
            continue
        if source.profile in ("front", "back"):
            found[decoding_label(name)] = source.profile
    return found
