"""Print what a run takes: `python -m shallow_signals.planning [--profile P] [--configfile F ...] [target ...]`.

Ends with 1, and says why, where a job fits on no card of the size given. Nothing is submitted and nothing written.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from shallow_signals.config.recipes import Recipe
from shallow_signals.config.study import DPOExperiment, RewardExperiment
from shallow_signals.files import InputError
from shallow_signals.models.load import pick_device
from shallow_signals.planning.calibrate import Machine, calibrate_jobs, typical_pairs
from shallow_signals.planning.dag import planned_jobs, read_study
from shallow_signals.planning.memory import GB, free_memory, too_little_here
from shallow_signals.planning.planner import Planner
from shallow_signals.planning.report import TRAFFIC, UTILISATION, add_up, as_table, in_brief, speeds
from shallow_signals.planning.sizes import Sizes

LARGEST = "full"  # the size that leaves nothing out


def main(given: list[str] | None = None) -> int:
    """Plan, print, and tell by the exit code whether all of it can be made."""
    parser = argparse.ArgumentParser(prog="python -m shallow_signals.planning", description=__doc__)
    parser.add_argument("--profile", type=Path, help="a profile folder: its overlays are planned")
    parser.add_argument("--configfile", type=Path, nargs="+", default=[], help="overlays over config.yaml")
    parser.add_argument("--config", nargs="+", default=[], metavar="KEY=VALUE", help="single settings, as size=quick")
    parser.add_argument("--left", action="store_true", help="only what is not made yet")
    parser.add_argument("--card", type=float, default=80.0, help="memory of a GPU in GB")
    parser.add_argument("--calibrate", action="store_true", help="measure this machine for some seconds: hours here")
    parser.add_argument("--brief", action="store_true", help="the sum only, and what another size would do beyond it")
    parser.add_argument("targets", nargs="*", default=["all"])
    asked = parser.parse_args(given)

    run = read_study(asked.profile, asked.configfile, dict(setting.split("=", 1) for setting in asked.config))
    arguments = ["--configfile", *map(str, run.overlays)] if run.overlays else []
    arguments += ["--config", *asked.config] if asked.config else []
    arguments += [] if asked.left else ["--forceall"]
    results = Path("results") / run.study.run
    sizes = Sizes(run.study, results)
    jobs = planned_jobs([*arguments, "--", *asked.targets], results)
    machine = _measure(sizes, jobs, run.cores) if asked.calibrate else None
    totals, refused = add_up(Planner(sizes, asked.card * GB), jobs, machine)
    if machine is not None and pick_device().type == "cpu":
        largest = max(total.memory for total in totals.values())
        refused += filter(None, [too_little_here(largest, machine.jobs, free_memory())])
    if asked.brief:
        print(in_brief(totals, machine))
        beyond = run.left_to(LARGEST)
        if beyond:
            print("\n    ".join([f"  left to size {LARGEST}:", *beyond]))
    else:
        print(as_table(totals))
        if machine is not None:
            print(f"\nMeasured here: {speeds(machine)}")
        share = f"{UTILISATION:.0%} of its peak (sampling: {TRAFFIC:.0%} of its bandwidth)"
        print(f"\nHours: of one GPU, at {share}: assumed")
        for name, origin in sorted(sizes.origins.items()):
            print(f"Lengths of {name}: {origin}")
    for line in refused:
        print(f"cannot be made: {line}", file=sys.stderr)
    return 1 if refused else 0


def _measure(sizes: Sizes, jobs: list[tuple[str, list[str]]], cores: int) -> Machine | None:
    """With the model and the recipe of the first training of the plan; None where it trains nothing."""
    study = sizes.study
    for path in (path for _, outputs in jobs for path in outputs):
        match = re.match(r"models/(reward|dpo)/([^/]+)/", path)
        if match and match[1] == "reward":
            spec = study.reward_models[match[2]]
            return _measure_with(sizes, spec, study.reward_recipes[spec.recipe], cores)
        if match:
            policy = study.dpo[match[2]]
            return _measure_with(sizes, policy, study.dpo_recipes[policy.recipe], cores)
    return None


def _measure_with(sizes: Sizes, spec: RewardExperiment | DPOExperiment, recipe: Recipe, cores: int) -> Machine:
    lengths = sizes.lengths(spec.dataset, spec.model, "train")
    pairs = typical_pairs(lengths, recipe.global_batch, recipe.max_length // 2)  # long texts are cut
    return calibrate_jobs(sizes.shape(spec.model), recipe, pairs, cores)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(f"error: {error}")
