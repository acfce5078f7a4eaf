# What the rules of log-probabilities, implicit rewards and verdicts ask of the configuration. Functions only.


def weighed(part):
    """Names of what this run weighs as evidence: its probes, reward models or implicit rewards."""
    return [name for e in STUDY.tables.verdicts if (name := getattr(STUDY.evidence[e], part)) is not None]


def implicit_rewards():
    """Names of the implicit rewards of this run, in the figures' order."""
    shown_in = STUDY.figures.figure1, STUDY.figures.figure2, STUDY.figures.figure5, STUDY.figures.position
    return list(
        dict.fromkeys([*(name for names in shown_in for name in names), *weighed("implicit_rewards")])
    )


def evidence_inputs():
    """Files that the verdicts are read off."""
    probes = [results(f"probe/{name}.csv") for name in weighed("probe")]
    scores = [
        path
        for name in weighed("reward_models")
        for by_seed in scores_by_seed(name, "heldout").values()
        for path in by_seed.values()
    ]
    return probes + scores + [results(f"signal/{name}.csv") for name in weighed("implicit_rewards")]


def evidence_rows():
    """What the table of verdicts needs to know of its evidence."""
    rows = []
    for spec in (STUDY.evidence[name] for name in STUDY.tables.verdicts):
        row = {"label": spec.label}
        if spec.probe:
            row["probe"] = results(f"probe/{spec.probe}.csv")
        if spec.reward_models:
            row["rewards"] = scores_by_seed(spec.reward_models, "heldout")
        if spec.implicit_rewards:
            row["implicit"] = results(f"signal/{spec.implicit_rewards}.csv")
        rows.append(row)
    return rows


def logprob_params(dataset, model, part):
    """How pairs of a data set are read: at every cut that anything in this run asks for."""
    users = [i for i in STUDY.implicit_rewards.values() if i.dataset == dataset]
    trained = [d for d in STUDY.dpo.values() if d.dataset == dataset]
    cuts = {ratio for i in users for ratio in i.ratios}
    cuts |= {
        int(100 * parse_truncation(t).ratio)
        for d in trained
        for t in d.truncations
        if parse_truncation(t).ratio
    }
    recipes = [STUDY.dpo_recipes[d.recipe] for d in trained]
    return {
        "cuts": sorted(cuts),
        "max_length": max([i.max_length for i in users] + [r.max_length for r in recipes]),
        "compute": compute_of(dataset),
        "bos": STUDY.models[model].bos,
        "split": None if part == "all" else part,
    }


def base_part(dataset):
    """Which pairs of a data set a base model is read on: all where a policy is trained on them, or asked about them."""
    users = [STUDY.implicit_rewards[i] for i in implicit_rewards()]
    trained = dataset in {STUDY.dpo[e].dataset for e in dpo_experiments()}
    return "all" if trained or any(i.dataset == dataset and i.part == "all" for i in users) else "test"


def compute_of(dataset):
    """The type of matrix products in which a data set is read: that of the policies trained on it."""
    trained = [STUDY.dpo_recipes[d.recipe].compute for d in STUDY.dpo.values() if d.dataset == dataset]
    return trained[0] if trained else "auto"


def policies_read(name):
    """(truncation, seed) of the DPO policies that an implicit reward reads, by what it reads them for; empty lists where
    its policy is a base model.

    `policy`: one a seed. `half1`, `half2`: trained on one half of the pairs (`topshare`). `shuffled`: trained on shuffled
    labels, the first seed of each shuffle. The last three only where held-out pairs are read.
    """
    spec = STUDY.implicit_rewards[name]
    read = {part: [] for part in ("policy", *HALVES, "shuffled")}
    if (trained := STUDY.dpo.get(spec.policy)) is None:
        return read
    read["policy"] = [("full", seed) for seed in trained.seeds_of("full")]
    if spec.part == "all":
        return read
    if set(HALVES) <= set(trained.truncations):
        first, second = (trained.seeds_of(half) for half in HALVES)
        read |= {half: [(half, seed) for seed in first if seed in second] for half in HALVES}
    shuffles = [t for t in trained.truncations if parse_truncation(t).kind == "shuffled"]
    read["shuffled"] = [(t, trained.seeds_of(t)[0]) for t in shuffles]
    return read


def policy_logprobs(policy, members, dataset):
    """Files of log-probabilities of a DPO experiment's policies on a data set."""
    return [results(f"logprobs/dpo/{policy}/{t}/seed{s}/{dataset}.parquet") for t, s in members]


def logprobs_read(name, part):
    """Files of log-probabilities that an implicit reward reads for a `part` of `policies_read`."""
    spec = STUDY.implicit_rewards[name]
    return policy_logprobs(spec.policy, policies_read(name)[part], spec.dataset)


def read_together():
    """(DPO experiment, data set) -> the (truncation, seed) of all its policies that this run reads on it."""
    together = {}
    for name in implicit_rewards():
        spec = STUDY.implicit_rewards[name]
        for members in policies_read(name).values():
            together.setdefault((spec.policy, spec.dataset), {}).update(dict.fromkeys(members))
    return {key: list(members) for key, members in together.items() if members}


def implicit_policies(name):
    """Files of log-probabilities of an implicit reward's policy: one a seed of a DPO experiment, or a base model's."""
    spec = STUDY.implicit_rewards[name]
    if spec.policy not in STUDY.dpo:
        return [results(f"logprobs/base/{spec.policy}/{spec.dataset}.parquet")]
    return logprobs_read(name, "policy")


def implicit_models(name):
    """Checkpoints of an implicit reward's policy, one a seed as `implicit_policies`, and of its reference."""
    spec = STUDY.implicit_rewards[name]
    reference = results(f"models/base/{reference_model(spec)}")
    if spec.policy not in STUDY.dpo:
        return [results(f"models/base/{spec.policy}")], reference
    members = policies_read(name)["policy"]
    return [results(f"models/dpo/{spec.policy}/{t}/seed{s}") for t, s in members], reference


def controlled(check):
    """Implicit rewards that a check reads beside the reward models: of policies trained on shuffled labels, too."""
    return [i for i in implicit_rewards() if check == "shuffled" and logprobs_read(i, "shuffled")]


def reference_model(spec):
    """The base model that an implicit reward is measured against."""
    return spec.reference or STUDY.dpo[spec.policy].model


def implicit_reference(name):
    """The reference's file of log-probabilities."""
    spec = STUDY.implicit_rewards[name]
    return results(f"logprobs/base/{reference_model(spec)}/{spec.dataset}.parquet")


def implicit_tokens(name):
    """Tokens of an implicit reward's data set, as its reference reads them; they tell the split."""
    spec = STUDY.implicit_rewards[name]
    return results(f"data/{spec.dataset}/tokens/{reference_model(spec)}.parquet")


def policy_part(policy, dataset):
    """Which pairs of a data set a DPO policy is read on."""
    parts = [i.part for i in STUDY.implicit_rewards.values() if i.policy == policy and i.dataset == dataset]
    return "all" if "all" in parts else "test"


def policy_params(policy, dataset):
    """How a DPO experiment's policies are read on a data set."""
    return logprob_params(dataset, STUDY.dpo[policy].model, policy_part(policy, dataset))


def implicit_label(name):
    """What a figure calls an implicit reward."""
    spec = STUDY.implicit_rewards[name]
    return spec.label or STUDY.datasets[spec.dataset].label
