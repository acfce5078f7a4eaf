"""Verdicts from three instruments: against constructed outcomes, and against the planted world's own numbers."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from shallow_signals.config.statistics import Statistics
from shallow_signals.evaluation.place import place_of
from shallow_signals.evaluation.scores import SCORES
from shallow_signals.files import InputError, write_parquet
from shallow_signals.paper.verdicts import verdicts
from shallow_signals.signal.curves import COLUMNS

SETTINGS = Statistics(resamples=300)
SURE, CHANCE = (0.58, 0.64), (0.46, 0.54)
N = 400


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        ((SURE, CHANCE, (-0.15, -0.05), (0.01, 0.05)), "early"),
        ((SURE, CHANCE, (-0.15, -0.05), (-0.05, -0.01)), "late"),
        ((SURE, CHANCE, (-0.15, -0.05), (-0.015, 0.015)), "everywhere"),
        ((SURE, CHANCE, (-0.15, -0.05), (-0.03, 0.03)), "undecided"),
        ((SURE, (0.6, 0.66), (-0.01, 0.03), (0.01, 0.05)), "length"),  # whatever head and tail say
        ((CHANCE, (0.6, 0.66), (0.06, 0.2), (0.01, 0.05)), "length"),  # which tells what the model doesn't
        (((0.3, 0.4), (0.6, 0.66), (0.2, 0.3), (0.01, 0.05)), "undecided"),  # a model that learnt something else
        ((CHANCE, CHANCE, (-0.05, 0.05), (0.01, 0.05)), "undecided"),  # a model that knows nothing has no place
        ((SURE, CHANCE, (-0.15, -0.05), None), "undecided"),
        ((SURE, CHANCE, (-0.15, -0.05), (np.nan, np.nan)), "undecided"),
    ],
)
def test_the_rule(arguments: Any, place: str) -> None:
    assert place_of(*arguments, margin=0.02) == place


def scores(path: Path, tests: dict[str, float], seed: int) -> str:
    """Held-out scores of a model that is right on these shares of `N` pairs; chosen is as long as rejected."""
    rng = np.random.default_rng(seed)
    rows = []
    for test, share in tests.items():
        right = rng.permutation(N) < round(share * N)
        for i in range(N):
            rows.append(
                {
                    "pair_id": f"p{i}", "cluster": f"c{i}", "subset": None, "test": test,
                    "chosen": float(right[i]), "rejected": 0.5, "chosen_length": 10, "rejected_length": 10,
                }
            )  # fmt: skip
    write_parquet(path, pa.Table.from_pylist(rows, schema=SCORES))
    return str(path)


def models(folder: Path, shares: dict[str, float], seeds: int) -> dict[str, dict[int, str]]:
    found: dict[str, dict[int, str]] = {}
    for (name, share), seed in product(shares.items(), range(seeds)):
        tests = {"full": share} if name == "full" else {"full": 0.5, "kept": share}
        found.setdefault(name, {})[seed] = scores(folder / f"{name}-{seed}.parquet", tests, seed)
    return found


@pytest.mark.parametrize(("seeds", "said"), [(3, "early"), (1, "undecided (this run: early)")])
def test_reward_models_need_three_seeds_to_speak(tmp_path: Path, seeds: int, said: str) -> None:
    shares = {"full": 0.8, "head50": 0.78, "tail50": 0.55, "window50": 0.6, "min_length": 0.8}
    table = verdicts([{"label": "X", "rewards": models(tmp_path, shares, seeds)}], SETTINGS)
    (row,) = table.rows
    assert row.label == f"reward model: {said}"
    found = {name: cell.estimate for (name, _), cell in zip(table.columns, row.cells, strict=True)}
    wanted = {"whole": 0.8, "longer": 0.5, "longer-whole": -0.3, "head-tail": 0.23, "head-window": 0.18}
    for name, value in (wanted | {"min_length-whole": 0.0}).items():
        assert found[name] is not None and found[name].value == pytest.approx(value, abs=1e-9), name


def test_equal_models_are_not_early(tmp_path: Path) -> None:
    """The control: head and tail that are right on the same share."""
    table = verdicts(
        [{"label": "X", "rewards": models(tmp_path, dict.fromkeys(("full", "head50", "tail50"), 0.7), 3)}], SETTINGS
    )
    assert "early" not in table.rows[0].label and "late" not in table.rows[0].label


def test_probe_and_implicit_rewards_are_read_off_their_tables(tmp_path: Path) -> None:
    probe = pd.DataFrame(
        [
            ("plain", "full", 100, "full", 0.62, 0.60, 0.64, 900, 800, None, None, None, None, None, None),
            ("plain", "length", 100, "length", 0.52, 0.50, 0.54, 900, 800, -0.10, -0.13, -0.07, None, None, None),
            ("plain", "tail", 50, "kept", 0.56, 0.54, 0.58, 900, 800, None, None, None, -0.05, -0.08, -0.02),
        ],
        columns=["split", "train_side", "ratio", "test", "accuracy", "low", "high", "n", "clusters"]
        + [f"difference_to_{what}{end}" for what in ("full", "head") for end in ("", "_low", "_high")],
    )
    probe.to_csv(tmp_path / "probe.csv", index=False)
    implicit = pd.DataFrame(
        [
            ("ratio", "head", 100, 0.7, 0.66, 0.74, 500, 400, 3, 0, None, None, None),
            ("ratio", "longer", 100, 0.5, 0.46, 0.54, 500, 400, 3, 0, -0.2, -0.25, -0.15),
            ("ratio", "tail", 50, 0.68, 0.64, 0.72, 500, 400, 3, 0, 0.06, 0.02, 0.10),
            ("ratio", "min_length", 100, 0.69, 0.65, 0.73, 500, 400, 3, 0, -0.01, -0.02, 0.0),
        ],
        columns=COLUMNS,
    )
    implicit.to_csv(tmp_path / "implicit.csv", index=False)
    evidence = {"label": "X", "probe": str(tmp_path / "probe.csv"), "implicit": str(tmp_path / "implicit.csv")}
    first, second = verdicts([evidence], SETTINGS).rows
    assert (first.label, second.label) == ("probe: early", "implicit reward: late")
    head_tail = second.cells[3].estimate
    assert head_tail is not None
    assert (head_tail.value, head_tail.low, head_tail.high) == pytest.approx((-0.06, -0.10, -0.02))
    assert first.cells[5].note == "not measured"  # the probe has no cut to the shorter one's length


def test_an_experiment_without_full_responses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="add `full` to truncations"):
        verdicts([{"label": "X", "rewards": models(tmp_path, {"head50": 0.7}, 1)}], SETTINGS)
