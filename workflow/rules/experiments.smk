# What the rules ask of the configuration: experiments, their members, and the files that belong to them. Functions only.


def reward_experiments():
    """Names of the reward-model experiments of this run, in the tables' order."""
    lists = STUDY.tables.table1, STUDY.tables.table2, STUDY.tables.table4, STUDY.tables.controls
    return list(dict.fromkeys([*(name for names in lists for name in names), *weighed("reward_models")]))


def comparisons():
    """Names of the AlpacaEval comparisons of this run, in the table's order."""
    return list(dict.fromkeys(STUDY.tables.table3))


def decodings():
    """Names of the decodings of this run, in the figures' order."""
    return list(dict.fromkeys([*STUDY.figures.figure3, *STUDY.figures.figure4]))


def judges():
    """Names of the judges of this run."""
    used = [STUDY.alpacaeval[c].judge for c in comparisons()] + [
        STUDY.decoding[d].reward for d in decodings()
    ]
    return list(dict.fromkeys(used))


def trained_experiments():
    """Names of the reward-model experiments to train: those of the tables, and those that judge."""
    judging = [STUDY.judges[j].experiment for j in judges() if STUDY.judges[j].kind == "trained"]
    return list(dict.fromkeys([*reward_experiments(), *judging]))


def members_of(experiment):
    """Every (truncation, seed) that an experiment trains."""
    spec = STUDY.reward_models[experiment]
    return [(t, s) for t in spec.truncations for s in spec.seeds_of(t)]


def tests_of(experiment):
    """The test sets that an experiment's models are scored on: `heldout` and benchmarks."""
    spec = STUDY.reward_models[experiment]
    return [*(["heldout"] if spec.heldout else []), *spec.benchmarks]


def scores_of(experiments):
    """Paths of all per-row scores of the named experiments."""
    return [
        results(f"evaluations/reward/{e}/{t}/seed{s}/{test}.parquet")
        for e in experiments
        for t, s in members_of(e)
        for test in tests_of(e)
    ]


def source_file(wildcards):
    """The local file that a data set is read from, if it is one and exists: an edit of it is an edit of the input."""
    source = STUDY.datasets[wildcards.dataset].source
    offline = source if source.kind == "file" else getattr(source, "offline", None)
    if offline is None:
        return []
    path = os.path.join(STUDY.data_root or "", offline.path)
    return [path] if os.path.isfile(path) else []


def instruction_file(wildcards):
    """The local file that a set of instructions is read from, if it is one and exists."""
    source = STUDY.instructions[wildcards.instructions].source
    offline = source if source.kind == "file" else getattr(source, "offline", None)
    if offline is None:
        return []
    path = os.path.join(STUDY.data_root or "", offline.path)
    return [path] if os.path.isfile(path) else []


def instruction_pairs(wildcards):
    """The pairs whose prompts a set of instructions takes."""
    source = STUDY.instructions[wildcards.instructions].source
    return [results(f"data/{source.dataset}/pairs.parquet")] if source.kind == "pairs" else []


def judge_model(name):
    """The checkpoint that a judge scores with, as a list of none or one."""
    judge = STUDY.judges[name]
    if judge.kind == "model":
        return [results(f"models/base/{judge.model}")]
    if judge.kind != "trained":
        return []
    seed = STUDY.reward_models[judge.experiment].seeds_of(judge.truncation)[0]
    return [model_folder(judge.experiment, judge.truncation, seed)]


def judge_params(name):
    """What a judge's scores depend on, besides its checkpoint (see `evaluation.rewards.rewards`)."""
    judge = STUDY.judges[name]
    if judge.kind == "api":
        return plain(judge)
    if judge.kind == "planted":
        return {"kind": "planted", "source": plain(STUDY.datasets[judge.dataset].source)}
    if judge.kind == "model":
        return {"kind": "model", "bos": STUDY.models[judge.model].bos, "max_length": judge.max_length}
    spec = STUDY.reward_models[judge.experiment]
    recipe = STUDY.reward_recipes[spec.recipe]
    reading = {key: getattr(recipe, key) for key in ("max_length", "end_of_turn", "compute")}
    return {"kind": "model", "bos": STUDY.models[spec.model].bos, **reading}


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


def trunk_of(experiment, test):
    """What the layers that an experiment's models share make of a test set, as a list of none or one."""
    return [results(f"trunks/{experiment}/{test}.safetensors")] if STUDY.shared_layers(experiment) else []


def shard_jobs():
    """What each job that writes shards makes: its place in the logs, data set, model and truncations.

    One truncation a job as a pattern of wildcards; or, with `process_per: experiment`, all that this run uses of a data
    set.
    """
    if STUDY.process_per == "model":
        return [("{dataset}/{model}/{truncation}", "{dataset}", "{model}", ["{truncation}"])]
    used = {}
    for spec in (STUDY.reward_models[e] for e in trained_experiments()):
        tested = ["full"] if spec.heldout else []
        used.setdefault((spec.dataset, spec.model), {}).update(dict.fromkeys([*tested, *spec.truncations]))
    for spec in (STUDY.dpo[e] for e in dpo_experiments()):
        used.setdefault((spec.dataset, spec.model), {}).update(dict.fromkeys(spec.truncations))
    return [(f"{d}/{m}", d, m, list(truncations)) for (d, m), truncations in used.items()]


def heldout_shards(experiment, truncations):
    """Held-out pairs, whole and as each truncation keeps them."""
    cut = [t for t in truncations if not parse_truncation(t).keeps_text]
    return [shards_for(experiment, t) for t in ["full", *cut]]


def tested_tokens(experiment, test):
    """The tokens of the pairs that a test set is drawn from: `heldout`, or a benchmark."""
    spec = STUDY.reward_models[experiment]
    dataset = spec.dataset if test == "heldout" else STUDY.benchmarks[test].dataset
    return results(f"data/{dataset}/tokens/{spec.model}.parquet")


def scores_by_seed(experiment, test):
    """Paths of one experiment's scores on one test set, by truncation and seed."""
    spec = STUDY.reward_models[experiment]
    folder = f"evaluations/reward/{experiment}"
    return {
        t: {s: results(f"{folder}/{t}/seed{s}/{test}.parquet") for s in spec.seeds_of(t)}
        for t in spec.truncations
    }


def shown(experiments):
    """What a table needs to know of its experiments: labels, aspects, score files and the benchmarks' rules."""
    rows = []
    for name in experiments:
        spec = STUDY.reward_models[name]
        dataset = STUDY.datasets[spec.dataset]
        source = plain(dataset.source)
        rows.append(
            {
                "experiment": name,
                "label": spec.label or dataset.label,
                "scores": {test: scores_by_seed(name, test) for test in tests_of(name)},
                "rules": {b: STUDY.benchmarks[b].rules for b in spec.benchmarks},
                "planted": source if source["kind"] == "planted" else None,
            }
        )
    return rows


def page_params():
    """What the results page says that no result does: its title and summary, and the probes' labels in their order."""
    probes = {name: STUDY.datasets[STUDY.probes[name].dataset].label for name in STUDY.probe}
    return {**(plain(STUDY.page) if STUDY.page else {}), "probes": probes}


def dpo_experiments():
    """Names of the DPO experiments of this run: those behind its tables and figures."""
    policies = [STUDY.implicit_rewards[name].policy for name in implicit_rewards()]
    policies += [STUDY.alpacaeval[name].policies for name in comparisons()]
    for name in decodings():
        policies += [STUDY.decoding[name].policy, *STUDY.decoding[name].retrained]
    return [name for name in dict.fromkeys(policies) if name in STUDY.dpo]


def dpo_members(experiment):
    """Every (truncation, seed) that a DPO experiment trains."""
    spec = STUDY.dpo[experiment]
    return [(t, s) for t in spec.truncations for s in spec.seeds_of(t)]


def dpo_params(experiment):
    """What the training of an experiment's policies depends on, besides its inputs."""
    spec = STUDY.dpo[experiment]
    return {"recipe": plain(STUDY.dpo_recipes[spec.recipe]), "bos": STUDY.models[spec.model].bos}


def dpo_shards(experiment, truncation):
    spec = STUDY.dpo[experiment]
    return results(f"data/{spec.dataset}/shards/{spec.model}/{truncation}")


def reference_logprobs(experiment):
    """The base model's log-probabilities of a DPO experiment's data set: the reference of all its truncations.

    None where OpenRLHF trains: it holds the reference model itself.
    """
    spec = STUDY.dpo[experiment]
    if STUDY.dpo_recipes[spec.recipe].backend == "openrlhf":
        return []
    return results(f"logprobs/base/{spec.model}/{spec.dataset}.parquet")


def model_module(name):
    """The library module that provides a base model: a tiny one is trained, any other is brought here."""
    return "models.tiny" if STUDY.models[name].source.kind == "tiny" else "models.sources"


def training_environment(recipe):
    """The environment that a recipe is trained in, as rules name it."""
    return "../../envs/openrlhf.yaml" if recipe.backend == "openrlhf" else "../../envs/core.yaml"


def dpo_environment(experiment):
    return training_environment(STUDY.dpo_recipes[STUDY.dpo[experiment].recipe])


def reward_environment(experiment):
    return training_environment(STUDY.reward_recipes[STUDY.reward_models[experiment].recipe])
