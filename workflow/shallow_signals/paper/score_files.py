"""Score files of many models, each read once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from shallow_signals.config.truncation import parse
from shallow_signals.evaluation.accuracy import Outcomes, outcomes, read_scores, tests_of
from shallow_signals.paper.layout import in_order

Scores = Mapping[tuple[str, str, int], Path]  # (experiment, truncation, seed) to the score file of one test set


class ScoreFiles:
    """Score files by experiment and truncation, each read once."""

    def __init__(self, paths: Scores) -> None:
        self.paths = paths
        self._tables: dict[tuple[str, str], dict[int, pa.Table]] = {}

    def truncations(self, experiment: str) -> list[str]:
        return in_order(truncation for name, truncation, _ in self.paths if name == experiment)

    def outcomes(self, experiment: str, truncation: str, test: str) -> Outcomes | None:
        """None where the test wasn't run. Responses kept whole are "kept" as they are "full"."""
        key = (experiment, truncation)
        if key not in self._tables:
            paths = {seed: path for (*name, seed), path in sorted(self.paths.items()) if tuple(name) == key}
            self._tables[key] = {seed: read_scores(path) for seed, path in paths.items()}
        tables = self._tables[key]
        if not tables:
            return None
        held = tests_of(tables)
        used = "full" if test == "kept" and "kept" not in held and parse(truncation).keeps_text else test
        return outcomes(tables, used, f"{experiment}/{truncation}") if used in held else None
