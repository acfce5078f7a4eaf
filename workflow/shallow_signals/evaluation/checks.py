"""Instruments held against a truth that they did not produce; a run whose instruments lie must fail.

The planted world's truth is computed (`data.planted_truth`): what the best judge of the kept part can reach, and so how
far apart two truncations may lie. Shuffled labels teach nothing, so models trained on them must be right half the time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy import stats

from shallow_signals.config.sources import PlantedSource
from shallow_signals.config.statistics import Statistics
from shallow_signals.config.truncation import parse
from shallow_signals.data.pairs import uniform_hash
from shallow_signals.data.planted_truth import best_accuracy
from shallow_signals.evaluation.accuracy import Outcomes, compare, outcomes, read_scores
from shallow_signals.evaluation.statistics import binomial_interval, binomial_p, holm

ALPHA = 0.001  # of the whole family of bounds: a run of sound instruments fails once in a thousand
PERSISTENT_LOSS = 0.10  # with persistent quality, head 50% tested on full responses stays this close to full
MIN_SHUFFLES = 5


@dataclass(frozen=True)
class Check:
    """One comparison of a measurement with a truth."""

    check: str  # bound, gap, persistent, shuffled, flipped; of win rates: dpo, even
    experiment: str
    truncation: str
    test: str
    seed: int | None
    n: int
    measured: float
    low: float  # of the measurement's interval (NaN for a bound, which has a p-value instead)
    high: float
    truth: float
    p: float  # Holm-adjusted over all bounds of the run (NaN where an interval decides)
    passes: bool


class CheckFailed(Exception):
    """An instrument disagrees with the known truth; the message lists every line that does."""


@dataclass(frozen=True)
class Experiment:
    """The score tables of one experiment on its held-out pairs."""

    name: str
    tables: Mapping[str, Mapping[int, pa.Table]]  # truncation -> seed -> scores


@dataclass(frozen=True)
class PlantedExperiment(Experiment):
    """One on planted data, whose truth can be computed."""

    source: PlantedSource


def load_experiment(
    name: str, paths: Mapping[str, Mapping[int, str]], source: PlantedSource | None = None
) -> Experiment:
    """Read the score tables of one experiment; `source` says how its data was planted, if it was."""
    tables = {t: {seed: read_scores(Path(path)) for seed, path in seeds.items()} for t, seeds in paths.items()}
    return Experiment(name, tables) if source is None else PlantedExperiment(name, tables, source)


def planted_checks(experiments: Iterable[Experiment], settings: Statistics) -> list[Check]:
    """No accuracy beats the best judge's; gaps between truncations are the world's; persistence carries over.

    Bounds are tested exactly and family-wise. Gaps are tested where qualities don't persist (there the world says how
    far a truncation may lie from full), by a paired interval at the family-wise level. Experiments on other data are
    left out.
    """
    planted = [experiment for experiment in experiments if isinstance(experiment, PlantedExperiment)]
    checks = _bounds(planted)
    gaps = [(e, t) for e in planted if e.source.persistence == 0 for t in ("head50", "tail50") if _has(e, t)]
    strict = settings.model_copy(update={"confidence": 1 - ALPHA / max(1, len(gaps))})
    checks += [_gap(e, t, strict) for e, t in gaps]
    checks += [_persistent(e, settings) for e in planted if e.source.persistence > 0 and _has(e, "head50")]
    return checks


def shuffled_checks(experiments: Iterable[Experiment], settings: Statistics) -> list[Check]:
    """Models trained on shuffled labels are right half the time on average, and any model is on flipped labels.

    One shuffled model may lean to either side (through length), so the interval is over shuffles: a t-interval of their
    mean accuracies. At least five are needed.
    """
    checks = []
    for experiment in experiments:
        names = [t for t in experiment.tables if parse(t).kind == "shuffled"]
        if len(names) >= MIN_SHUFFLES:
            checks.append(_shuffled(experiment, names, settings))
        if "full" in experiment.tables:
            checks.append(_flipped(experiment))
    return checks


def shuffled_policy_checks(curves: Mapping[str, Path]) -> list[Check]:
    """The same of DPO policies, from the curves of their implicit rewards (a table of `signal.curves` each)."""
    return [check for name, path in curves.items() for check in _controls(name, pd.read_csv(path))]


def as_table(checks: list[Check]) -> pa.Table:
    """All checks, a row each."""
    return pa.Table.from_pylist([asdict(check) for check in checks])


def require(checks: list[Check]) -> None:
    """Raise `CheckFailed` that lists the checks that do not pass; also when there was nothing to check."""
    if not checks:
        raise CheckFailed("nothing to check: this run has no experiment of the kind that the check is about")
    failed = [check for check in checks if not check.passes]
    if failed:
        lines = [
            f"{c.check} {c.experiment}/{c.truncation} on {c.test}: measured {c.measured:.4f} "
            f"[{c.low:.4f}, {c.high:.4f}], truth {c.truth:.4f}, n {c.n}, p {c.p:.2g}"
            for c in failed
        ]
        raise CheckFailed(f"{len(failed)} of {len(checks)} checks fail:\n" + "\n".join(lines))


def _has(experiment: Experiment, truncation: str) -> bool:
    return truncation in experiment.tables and "full" in experiment.tables


def _bounds(experiments: list[PlantedExperiment]) -> list[Check]:
    found: list[dict[str, Any]] = []
    truths: dict[tuple[str, str], float] = {}
    for experiment in experiments:
        for truncation, tables in experiment.tables.items():
            cut = parse(truncation)
            tests = ["full"] if cut.keeps_text or cut.unit == "char" else ["full", "kept"]
            for test in tests:
                seen = truncation if test == "kept" else "full"
                key = experiment.name, seen
                if key not in truths:
                    truths[key] = best_accuracy(experiment.source, parse(seen))
                for seed, table in tables.items():
                    result = outcomes({seed: table}, test, f"{experiment.name}/{truncation}")
                    found.append(
                        {
                            "experiment": experiment.name,
                            "truncation": truncation,
                            "test": test,
                            "seed": seed,
                            "n": result.n,
                            "right": int(result.correct.sum()),
                            "truth": truths[key],
                        }
                    )
    p_values = holm([binomial_p(f["right"], f["n"], f["truth"]) for f in found])
    return [
        Check(
            check="bound",
            measured=f.pop("right") / f["n"],
            low=float("nan"),
            high=float("nan"),
            p=p,
            passes=p >= ALPHA,
            **f,
        )
        for f, p in zip(found, p_values, strict=True)
    ]


def _gap(experiment: PlantedExperiment, truncation: str, settings: Statistics) -> Check:
    full = outcomes(experiment.tables["full"], "full", experiment.name)
    kept = outcomes(experiment.tables[truncation], "kept", experiment.name)
    gap = compare(full, kept, settings).difference
    truth = best_accuracy(experiment.source, parse("full")) - best_accuracy(experiment.source, parse(truncation))
    return Check(
        "gap",
        experiment.name,
        truncation,
        "kept",
        None,
        gap.n,
        gap.value,
        gap.low,
        gap.high,
        truth,
        float("nan"),
        gap.low <= truth <= gap.high,
    )


def _persistent(experiment: PlantedExperiment, settings: Statistics) -> Check:
    full = outcomes(experiment.tables["full"], "full", experiment.name)
    cut = outcomes(experiment.tables["head50"], "full", experiment.name)
    loss = compare(full, cut, settings).difference
    passes = loss.value <= PERSISTENT_LOSS
    return Check(
        "persistent",
        experiment.name,
        "head50",
        "full",
        None,
        loss.n,
        loss.value,
        loss.low,
        loss.high,
        PERSISTENT_LOSS,
        float("nan"),
        passes,
    )


def _shuffled(experiment: Experiment, names: list[str], settings: Statistics) -> Check:
    results = [outcomes(experiment.tables[name], "full", experiment.name) for name in names]
    means = np.array([float(result.correct.mean()) for result in results])
    half = float(stats.t.ppf((1 + settings.confidence) / 2, means.size - 1) * means.std(ddof=1) / np.sqrt(means.size))
    low, high = float(means.mean()) - half, float(means.mean()) + half
    return Check(
        "shuffled",
        experiment.name,
        f"{len(names)} shuffles",
        "full",
        None,
        results[0].n,
        float(means.mean()),
        low,
        high,
        0.5,
        float("nan"),
        low <= 0.5 <= high,
    )


def _controls(name: str, curves: pd.DataFrame) -> list[Check]:
    found = []
    for row in curves[curves["curve"].isin(["shuffled", "flipped"])].to_dict("records"):
        shuffled = row["curve"] == "shuffled"
        if not shuffled or row["seeds"] >= MIN_SHUFFLES:
            found.append(
                Check(
                    row["curve"],
                    f"implicit reward {name}",
                    f"{row['seeds']} shuffles" if shuffled else "full",
                    "full",
                    None,
                    row["n"],
                    row["accuracy"],
                    row["low"],
                    row["high"],
                    0.5,
                    float("nan"),
                    row["low"] <= 0.5 <= row["high"],
                )
            )
    return found


def _flipped(experiment: Experiment) -> Check:
    seed, table = min(experiment.tables["full"].items())
    result: Outcomes = outcomes({seed: table}, "full", experiment.name)
    flips = np.array([uniform_hash("flip", pair) < 0.5 for pair in result.pair_ids])
    right = int(np.where(flips, 1 - result.correct[0], result.correct[0]).sum())
    low, high = binomial_interval(right, result.n, 1 - ALPHA)
    return Check(
        "flipped",
        experiment.name,
        "full",
        "full",
        seed,
        result.n,
        right / result.n,
        low,
        high,
        0.5,
        float("nan"),
        low <= 0.5 <= high,
    )
