"""From what the workflow knows of a table (experiments, labels, score files) to the table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shallow_signals.config.sources import PlantedSource
from shallow_signals.config.statistics import Statistics
from shallow_signals.config.truncation import parse
from shallow_signals.data.planted_truth import best_accuracy
from shallow_signals.evaluation.rewardbench import load_rules
from shallow_signals.files import InputError
from shallow_signals.paper import tables
from shallow_signals.paper.layout import Table

HELDOUT = "heldout"


def build_table(name: str, rows: Sequence[Mapping[str, Any]], settings: Statistics) -> Table:
    """The table `name`: table1, table2, table4 or controls.

    `rows` hold `experiment`, `label`, `scores` (test set -> truncation -> seed -> path), `rules` (benchmark -> name of
    its table of sections) and `planted` (the planted source's settings, or None). Tables 1 and 4 show each experiment's
    first benchmark; `InputError` where there is none or the benchmarks' rules differ.
    """
    labels = {row["experiment"]: row["label"] for row in rows}
    if name in ("table1", "table4"):
        rules = {next(iter(row["rules"].values())) for row in rows if row["rules"]}
        if len(rules) != 1 or not all(row["rules"] for row in rows):
            raise InputError(f"tables.{name}: its experiments need one benchmark of the same rules each")
        make = tables.table1 if name == "table1" else tables.table4
        return make(dict(_paths(rows, None)), labels, load_rules(rules.pop()), settings)
    scores = dict(_paths(rows, HELDOUT))
    if name == "table2":
        return tables.table2(scores, labels, settings)
    return tables.controls(scores, labels, settings, dict(_best(rows)))


def _paths(rows: Sequence[Mapping[str, Any]], test_set: str | None) -> Iterator[tuple[tuple[str, str, int], Path]]:
    for row in rows:
        chosen = test_set or next(iter(row["rules"]))
        for truncation, by_seed in row["scores"].get(chosen, {}).items():
            for seed, path in by_seed.items():
                yield (row["experiment"], truncation, int(seed)), Path(path)


def _best(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[tuple[str, str, str], float]]:
    """Best possible accuracies of planted experiments, where they are known (cuts by tokens)."""
    for row in rows:
        if not row["planted"]:
            continue
        source = PlantedSource.model_validate(row["planted"])
        for name in row["scores"].get(HELDOUT, {}):
            cut = parse(name)
            yield (row["experiment"], name, "full"), best_accuracy(source, parse("full"))
            if cut.unit == "token" and cut.kind != "shuffled":
                yield (row["experiment"], name, "kept"), best_accuracy(source, cut)
