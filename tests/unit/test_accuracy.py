"""Score tables to accuracies: ties, alignment, curves and comparisons, against counts by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from shallow_signals.evaluation.accuracy import (
    accuracy,
    by_seed,
    compare,
    curve,
    join,
    length_baseline,
    outcomes,
    read_scores,
)
from shallow_signals.evaluation.statistics import mcnemar
from shallow_signals.files import InputError, write_parquet

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("pair_id", "cluster", "subset", "test")),
        *((name, pa.float32()) for name in ("chosen", "rejected")),
        *((name, pa.int32()) for name in ("chosen_length", "rejected_length")),
    ]
)


def table(rows: list[dict[str, Any]]) -> pa.Table:
    base = {"subset": None, "test": "full", "chosen_length": 10, "rejected_length": 10}
    return pa.Table.from_pylist([{**base, "cluster": row["pair_id"], **row} for row in rows], SCHEMA)


def scored(margins: dict[str, float], **extra: Any) -> pa.Table:
    return table([{"pair_id": name, "chosen": m, "rejected": 0.0, **extra} for name, m in margins.items()])


def test_a_tie_is_wrong_and_counted() -> None:
    found = outcomes({7: scored({"a": 1.0, "b": -1.0, "c": 0.0, "d": 2.0})}, "full")
    assert accuracy(found).value == 0.5
    assert found.ties.sum() == 1
    assert found.seeds == (7,)
    assert accuracy(found).method == "Wilson"


def test_seeds_are_aligned_by_pair_not_by_order() -> None:
    first = scored({"a": 1.0, "b": -1.0, "c": 1.0, "x": 1.0})
    second = scored({"c": -1.0, "a": 1.0, "b": 1.0})
    found = outcomes({1: first, 2: second}, "full")
    assert found.pair_ids.tolist() == ["a", "b", "c"]
    assert found.correct.tolist() == [[1, 0, 1], [1, 1, 0]]
    assert found.left_out == 1
    assert by_seed(found) == pytest.approx((2 / 3, 2 / 3))


def test_comparison_uses_shared_pairs_only() -> None:
    rng = np.random.default_rng(0)
    a = {f"p{i}": float(m) for i, m in enumerate(rng.normal(0.4, 1, 300))}
    b = {name: m - 0.3 for name, m in a.items() if name != "p0"} | {"q": 5.0}
    left, right = (outcomes({1: scored(x)}, "full") for x in (a, b))
    found = compare(left, right)
    shared = [name for name in a if name in b]
    right_a, right_b = (np.array([x[name] > 0 for name in shared]) for x in (a, b))
    assert found.difference.value == pytest.approx(right_a.mean() - right_b.mean())
    assert found.left_out == 2
    assert found.mcnemar_p == mcnemar(right_a, right_b)[2] < 1e-6
    assert found.difference.low > 0
    assert compare(right, left).difference.value == pytest.approx(-found.difference.value)
    independent = math.hypot(*(np.std(x, ddof=1) / math.sqrt(299) for x in (right_a, right_b)))
    assert found.difference.high - found.difference.low < 2 * 1.96 * independent * 0.8


def test_seeds_are_paired_when_equal_and_independent_else() -> None:
    rng = np.random.default_rng(1)
    tables = {s: scored({f"p{i}": float(m) for i, m in enumerate(rng.normal(0.4, 1, 200))}) for s in range(4)}
    three = outcomes({s: tables[s] for s in (0, 1, 2)}, "full")
    assert compare(three, three).difference.value == 0
    mixed = compare(three, outcomes({s: tables[s] for s in (1, 2, 3)}, "full"))
    assert mixed.difference.seeds == 3
    assert mixed.mcnemar_p is None
    lone = compare(three, outcomes({3: tables[3]}, "full"))
    assert (lone.difference.seeds, lone.difference.method) == (1, "bootstrap over clusters")


def test_curve_reads_every_cut_and_full() -> None:
    rows = []
    for test, margins in (
        ("full", (1, 1, 1, -1)),
        ("cut05", (1, -1, -1, -1)),
        ("cut50", (1, 1, -1, -1)),
        ("kept", (-1, -1, -1, -1)),
    ):
        rows += [{"pair_id": f"p{i}", "test": test, "chosen": float(m), "rejected": 0.0} for i, m in enumerate(margins)]
    found = curve({1: table(rows)})
    assert {cut: point.value for cut, point in found.items()} == {5: 0.25, 50: 0.5, 100: 0.75}
    assert list(found) == [5, 50, 100]


def test_length_baseline_counts_equal_lengths_half() -> None:
    lengths = [(9, 3), (3, 9), (5, 5), (8, 2)]
    rows = [
        {"pair_id": f"p{i}", "chosen": 0.0, "rejected": 1.0, "chosen_length": a, "rejected_length": b}
        for i, (a, b) in enumerate(lengths)
    ]
    assert length_baseline(outcomes({1: table(rows)}, "full")).value == pytest.approx(2.5 / 4)


def test_join_keeps_a_shared_prompt_one_cluster() -> None:
    a = outcomes({1: scored({"p": 1.0}, cluster="x"), 2: scored({"p": -1.0}, cluster="x")}, "full")
    b = outcomes({2: scored({"p": 1.0}, cluster="x")}, "full")
    both = join({"first": a, "second": b})
    assert both.seeds == (2,)
    assert both.correct.tolist() == [[0.0, 1.0]]
    assert both.clusters.tolist() == ["x", "x"]
    assert both.pair_ids.tolist() == ["first/p", "second/p"]
    with pytest.raises(InputError, match="no seed in common"):
        join({"first": outcomes({1: scored({"p": 1.0})}, "full"), "second": b})


def test_unusable_scores_are_refused_in_one_line(tmp_path: Path) -> None:
    good = scored({"a": 1.0, "b": 1.0})
    for tables, test, message in (
        ({}, "full", "no score table"),
        ({1: good}, "kept", "no row of test 'kept'"),
        ({1: pa.concat_tables([good, good])}, "full", "a pair_id twice"),
        ({1: scored({"a": math.nan})}, "full", "missing, NaN or infinite"),
        ({1: good, 2: scored({"z": 1.0})}, "full", "share no pair"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            outcomes(tables, test, "runs/x")
        assert "runs/x" in str(caught.value)
        assert "\n" not in str(caught.value)
    write_parquet(tmp_path / "s.parquet", good.drop_columns(["chosen_length"]))
    with pytest.raises(InputError, match=r"s\.parquet"):
        read_scores(tmp_path / "s.parquet")
    with pytest.raises(InputError, match="share no pair"):
        compare(outcomes({1: good}, "full"), outcomes({1: scored({"z": 1.0})}, "full"))
