# What the rules ask of the configuration: experiments, their members, and the files that belong to them. Functions only.


def reward_experiments():
    """Names of the reward-model experiments of this run, in the tables' order."""
    lists = STUDY.tables.table1, STUDY.tables.table2, STUDY.tables.table4, STUDY.tables.controls
    return list(dict.fromkeys(name for names in lists for name in names))


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


def benchmark_tokens(experiment, benchmark):
    return results(
        f"data/{STUDY.benchmarks[benchmark].dataset}/tokens/{STUDY.reward_models[experiment].model}.parquet"
    )


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
