"""Section and total scores of a benchmark of fixed pairs, by rules that stand in a table.

RewardBench's core set: a section is the weighted mean of its subsets' accuracies (weights are the subsets' official
numbers of rows, math-prm's raised to 984 so that mathematics weighs as much as code), the total is the plain mean of
the sections. A subset without rows is named as missing; what is left is marked partial wherever it shows.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Literal

import numpy as np

from shallow_signals.config.statistics import Statistics
from shallow_signals.evaluation.accuracy import Outcomes, compare, on_same_pairs
from shallow_signals.evaluation.statistics import DEFAULTS, UNIT, Estimate, Floats, cluster_bootstrap_mean

TOTAL = "Total"


@dataclass(frozen=True)
class Rule:
    """One subset of a benchmark: its section, official number of rows (None: free) and weight in the section."""

    section: str
    subset: str
    rows: int | None
    weight: float


@dataclass(frozen=True)
class Line:
    """One printed line: a subset, a section or the total."""

    name: str
    kind: Literal["subset", "extra", "section", "total"]  # extra: a subset that the rules don't name
    section: str
    estimate: Estimate | None  # None: no row at all
    difference: Estimate | None  # against the other model, on the pairs that both scored
    by_seed: tuple[float, ...]
    ties: int  # equal scores over all seeds, counted as wrong
    missing: tuple[str, ...]  # subsets of this line without rows
    note: str  # empty where the line is complete


def load_rules(name: Literal["rewardbench", "planted"]) -> list[Rule]:
    """The table of sections `{name}_sections.csv` that stands beside this module."""
    text = resources.files(__package__).joinpath(f"{name}_sections.csv").read_text(encoding="utf-8")
    return [
        Rule(row["section"], row["subset"], int(row["rows"]) if row["rows"] else None, float(row["weight"]))
        for row in csv.DictReader(text.splitlines())
    ]


def sections(rules: Iterable[Rule]) -> list[str]:
    """Names of the sections, in the rules' order."""
    return list(dict.fromkeys(rule.section for rule in rules))


def weights(rules: Sequence[Rule], present: Iterable[str]) -> dict[str, float]:
    """Weight of each present subset in the score that `rules` make up (a section or the total); they sum to 1."""
    there = set(present)
    held = [rule for rule in rules if rule.subset in there]
    sums = {name: sum(rule.weight for rule in held if rule.section == name) for name in sections(held)}
    return {rule.subset: rule.weight / sums[rule.section] / len(sums) for rule in held}


def score(
    found: Outcomes, rules: Sequence[Rule], settings: Statistics = DEFAULTS, against: Outcomes | None = None
) -> list[Line]:
    """All lines of a benchmark: each subset, subsets that the rules don't name, each section, the total.

    Intervals resample clusters within subsets. `against` is another model's outcomes on the same test; the differences
    use the pairs that both scored, under the same weights.
    """
    known = [rule.subset for rule in rules]
    extra = sorted(set(found.subsets.tolist()) - set(known))
    lines = [_line(rule.subset, "subset", rule.section, [rule], found, settings, against) for rule in rules]
    for subset in extra:
        own = [Rule("", subset, None, 1.0)]
        lines.append(_line(subset or "(no subset)", "extra", "", own, found, settings, against))
    for section in sections(rules):
        held = [rule for rule in rules if rule.section == section]
        lines.append(_line(section, "section", section, held, found, settings, against))
    lines.append(_line(TOTAL, "total", "", list(rules), found, settings, against))
    return lines


def _line(
    name: str,
    kind: Literal["subset", "extra", "section", "total"],
    section: str,
    rules: list[Rule],
    found: Outcomes,
    settings: Statistics,
    against: Outcomes | None,
) -> Line:
    subsets = [rule.subset for rule in rules]
    there = found.take(np.isin(found.subsets, subsets))
    missing = tuple(subset for subset in subsets if subset not in there.subsets)
    note = _note(kind, len(subsets), missing)
    if there.n == 0:
        return Line(name, kind, section, None, None, (), 0, missing, note)
    share = weights(rules, there.subsets.tolist())
    strata = there.subsets if len(share) > 1 else None
    estimate = cluster_bootstrap_mean(
        there.correct, there.clusters, settings, strata=strata, weights=share if len(share) > 1 else None, bounds=UNIT
    )
    difference = _difference(there, against, rules, settings)
    ties = int(there.ties.sum())
    return Line(name, kind, section, estimate, difference, _by_seed(there, share), ties, missing, note)


def _difference(there: Outcomes, against: Outcomes | None, rules: list[Rule], settings: Statistics) -> Estimate | None:
    if against is None or not np.isin(there.pair_ids, against.pair_ids).any():
        return None
    shared, _, _ = on_same_pairs(there, against)
    share = weights(rules, shared.subsets.tolist())
    return compare(there, against, settings, strata=shared.subsets, weights=share).difference


def _by_seed(there: Outcomes, share: dict[str, float]) -> tuple[float, ...]:
    means: Floats = sum(
        weight * there.correct[:, there.subsets == subset].mean(axis=1) for subset, weight in share.items()
    ) + np.zeros(len(there.seeds))
    return tuple(float(mean) for mean in means)


def _note(kind: str, subsets: int, missing: tuple[str, ...]) -> str:
    if not missing:
        return ""
    if len(missing) == subsets:
        return "missing: no row of this subset" if subsets == 1 else "missing: no row of any of its subsets"
    if kind == "total":
        return f"partial ({subsets - len(missing)} of {subsets} subsets)"
    return f"partial ({subsets - len(missing)} of {subsets} subsets; missing: {', '.join(missing)})"
