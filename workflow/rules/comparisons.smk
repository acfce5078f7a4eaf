# What the rules of AlpacaEval and Table 3 ask of the configuration. Functions only.


def rivals(comparison):
    """The columns of Table 3: the base model, and the policies of all truncations (the first seed's)."""
    truncations = STUDY.dpo[STUDY.alpacaeval[comparison].policies].truncations
    return ["base", *(t for t in truncations if parse_truncation(t).kind not in ("half", "shuffled"))]


def answering(comparison):
    """Everyone who generates outputs in a comparison: its columns, and what they are compared with if not stored."""
    return [*(["reference"] if STUDY.alpacaeval[comparison].against == "base" else []), *rivals(comparison)]


def outputs_of(comparison, member):
    return results(f"alpacaeval/{comparison}/{member}/model_outputs.json")


def annotations_of(comparison, member):
    return results(f"alpacaeval/{comparison}/{member}/annotations.json")


def answering_model(comparison, member):
    """The checkpoint that a member of a comparison generates with."""
    experiment = STUDY.alpacaeval[comparison].policies
    spec = STUDY.dpo[experiment]
    if member in ("base", "reference"):
        return results(f"models/base/{spec.model}")
    return results(f"models/dpo/{experiment}/{member}/seed{spec.seeds_of(member)[0]}")


def generation_params(comparison, member):
    """What a member's outputs depend on, besides its checkpoint and the instructions.

    The reference's outputs are sample 0 and the columns' sample 1: drawn from other random numbers than the reference's,
    and all columns from the same ones, so that columns differ by their models only.
    """
    spec = STUDY.alpacaeval[comparison]
    policies = STUDY.dpo[spec.policies]
    trained = member not in ("base", "reference")
    name = f"{spec.policies}-{member}-seed{policies.seeds_of(member)[0]}" if trained else policies.model
    return {
        **{key: getattr(spec, key) for key in ("max_new_tokens", "greedy", "seed", "engine", "batch")},
        "generator": name if member != "base" else f"{name}-again" if spec.against == "base" else name,
        "sample": 0 if member == "reference" else 1,
        "bos": STUDY.models[policies.model].bos,
        "compute": STUDY.dpo_recipes[policies.recipe].compute,
    }


def generation_environment(comparison):
    return f"../../envs/{'vllm' if STUDY.alpacaeval[comparison].engine == 'vllm' else 'core'}.yaml"


def compared_with(comparison):
    """The file of outputs that a comparison is against, as a list of none (they are stored) or one."""
    return [outputs_of(comparison, "reference")] if STUDY.alpacaeval[comparison].against == "base" else []


def length_control_files(comparison):
    """Files of AlpacaEval's length control that a comparison names."""
    spec = STUDY.alpacaeval[comparison].length_control
    return [
        results(f"alpacaeval/{comparison}/length_control/{part}.csv")
        for part in ("gamed", "difficulty")
        if getattr(spec, part)
    ]


def length_control_source(wildcards):
    """The local copy of such a file, if there is one."""
    spec = STUDY.alpacaeval[wildcards.comparison].length_control
    if not (STUDY.data_root and spec.offline):
        return []
    path = os.path.join(STUDY.data_root, spec.offline, getattr(spec, wildcards.part))
    return [path] if os.path.isfile(path) else []


def compared(comparison):
    """What Table 3 and its check need to know of a comparison."""
    spec = STUDY.alpacaeval[comparison]
    policies = STUDY.dpo[spec.policies]
    return {
        "comparison": comparison,
        "label": spec.label or policies.label or STUDY.datasets[policies.dataset].label,
        "instructions": STUDY.instructions[spec.instructions].label,
        "judge": judge_label(spec.judge),
        "against": spec.against,
        "base": STUDY.models[policies.model].label,
        "annotations": {member: annotations_of(comparison, member) for member in rivals(comparison)},
        "seeds": {t: policies.seeds_of(t)[0] for t in policies.truncations},
        "length_control": {Path(path).stem: path for path in length_control_files(comparison)},
    }


def checked_comparisons():
    """Comparisons of which is known what they must come to: the planted truth judges against the base model."""
    known = [c for c in comparisons() if STUDY.judges[STUDY.alpacaeval[c].judge].kind == "planted"]
    return [c for c in known if STUDY.alpacaeval[c].against == "base" and "full" in rivals(c)]


def judge_label(name):
    """What a table calls a judge."""
    judge = STUDY.judges[name]
    if judge.kind == "planted":
        return "the planted truth"
    if judge.kind == "api":
        return judge.model
    if judge.kind == "model":
        return STUDY.models[judge.model].label
    spec = STUDY.reward_models[judge.experiment]
    label = spec.label or STUDY.datasets[spec.dataset].label
    return f"a reward model of this run ({label}, {judge.truncation})"
