"""The probe on real preferences, against accuracies that an independent trial found (scikit-learn's own vectoriser)."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from shallow_signals.config.probe import Probe
from shallow_signals.config.statistics import Statistics
from shallow_signals.data.pairs import PAIRS, Message, Pair, pair_id, prompt_id
from shallow_signals.signal.probe import run_probe, verdict

NOISE = 0.015  # accuracies differ by up to a point and a half with the assignment to folds


def _pairs(rows: Iterable[dict[str, Any]], cluster: str | None = None, generator: str | None = None) -> pa.Table:
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        prompt = row["prompt"]
        turns: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        pair: Pair = {"prompt": turns, "chosen": row["chosen"], "rejected": row["rejected"]}
        if not pair["chosen"].strip() or not pair["rejected"].strip() or pair["chosen"] == pair["rejected"]:
            continue
        ids = {"pair_id": pair_id(pair), "prompt_id": prompt_id(turns)}
        groups = {
            "cluster": row[cluster] if cluster else ids["prompt_id"],
            "generator": row[generator] if generator else None,
        }
        found[ids["pair_id"]] = {name: {**pair, **ids, **groups}.get(name) for name in PAIRS.names}
    return pa.Table.from_pylist(list(found.values()), schema=PAIRS)


def _jsonl(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _run(pairs: pa.Table, **settings: Any) -> pd.DataFrame:
    sides, ratios = ["head", "tail"], [50]
    return run_probe(pairs, Probe(dataset="real", sides=sides, ratios=ratios, **settings), Statistics(resamples=500))


def _row(frame: pd.DataFrame, side: str, test: str, split: str = "plain") -> pd.Series:
    where = (frame.split == split) & (frame.train_side == side) & (frame.test == test)
    assert where.sum() == 1
    return frame[where].iloc[0]


def _check(frame: pd.DataFrame, expected: dict[tuple[str, str], float], within: float = NOISE) -> None:
    found = {key: float(_row(frame, *key).accuracy) for key in expected}
    wrong = {key: (value, expected[key]) for key, value in found.items() if abs(value - expected[key]) > within}
    assert not wrong, f"(found, expected): {wrong}"


def test_harmless_is_early(shared_data: Path) -> None:
    frame = _run(_pairs(_jsonl(shared_data / "hh_rlhf_harmless_test.jsonl.gz")))
    _check(
        frame,
        {
            ("full", "full"): 0.615,
            ("head", "full"): 0.612,
            ("tail", "full"): 0.596,
            ("head", "kept"): 0.612,
            ("tail", "kept"): 0.564,
        },
    )
    assert _row(frame, "tail", "full").accuracy < _row(frame, "head", "full").accuracy
    assert _row(frame, "tail", "kept").difference_to_head < -0.02
    assert _row(frame, "tail", "kept").difference_to_head_high < 0
    assert verdict(frame) == "early"


def test_helpful_is_not_early(shared_data: Path) -> None:
    frame = _run(_pairs(_jsonl(shared_data / "hh_rlhf_helpful_test.jsonl.gz")))
    _check(
        frame,
        {
            ("full", "full"): 0.600,
            ("head", "full"): 0.583,
            ("tail", "full"): 0.592,
            ("head", "kept"): 0.578,
            ("tail", "kept"): 0.589,
        },
        within=0.02,
    )
    assert verdict(frame) not in ("early", "late")


def test_arguments_of_people_are_not_early_and_length_does_better(shared_data: Path) -> None:
    frame = _run(_pairs(_jsonl(shared_data / "human_written_arguments.jsonl.gz"), cluster="topic"))
    _check(
        frame,
        {
            ("full", "full"): 0.709,
            ("head", "full"): 0.697,
            ("tail", "full"): 0.691,
            ("head", "kept"): 0.680,
            ("tail", "kept"): 0.677,
            ("longer", "length"): 0.771,
        },
        within=0.01,
    )
    assert _row(frame, "full", "full").clusters == 11
    for test in ("full", "kept"):
        assert abs(_row(frame, "tail", test).difference_to_head) < 0.02
    assert verdict(frame) == "length"


def test_alpacaeval_is_solved_by_length_also_with_generators_held_out(shared_data: Path) -> None:
    rows = pq.read_table(shared_data / "alpacaeval_pairs_test.parquet").to_pylist()
    frame = _run(_pairs(rows, generator="model"), hold_out_generators=True, rows=6000)
    _check(
        frame,
        {("full", "full"): 0.844, ("head", "full"): 0.852, ("tail", "full"): 0.856, ("length", "length"): 0.876},
    )
    for split in ("plain", "generators_held_out"):
        full, length = _row(frame, "full", "full", split), _row(frame, "length", "length", split)
        assert length.accuracy > full.accuracy - 0.01
        assert verdict(frame, split) == "length"  # type: ignore[arg-type]
    assert _row(frame, "full", "full", "generators_held_out").n < _row(frame, "full", "full").n / 3
