"""RewardBench's rules against their official numbers, sums by hand and a scorer written apart."""

from __future__ import annotations

import importlib.util
import re
import runpy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from shallow_signals.data.pairs import content_id
from shallow_signals.data.sample import stratified_sample
from shallow_signals.evaluation.accuracy import Outcomes
from shallow_signals.evaluation.rewardbench import Line, Rule, load_rules, score, sections, weights
from shallow_signals.files import InputError

RULES = load_rules("rewardbench")
PLANTED = load_rules("planted")


def made(right: dict[str, list[float]], clusters: list[str] | None = None) -> Outcomes:
    """Outcomes of one run with the given rights and wrongs per subset."""
    subsets = np.array([name for name, values in right.items() for _ in values])
    ids = np.array([f"{i:05d}" for i in range(subsets.size)])
    correct = np.array([[value for values in right.values() for value in values]])
    return Outcomes(
        ids, np.array(clusters or ids), subsets, correct, np.zeros(correct.shape, bool), np.full(ids.size, 0.5), (1,)
    )


def shares(accuracies: dict[str, tuple[int, int]]) -> Outcomes:
    return made({name: [1.0] * k + [0.0] * (n - k) for name, (k, n) in accuracies.items()})


def lines(found: Outcomes, rules: list[Rule] = RULES, against: Outcomes | None = None) -> dict[str, Line]:
    return {line.name: line for line in score(found, rules, against=against)}


def official() -> Outcomes:
    return made({rule.subset: [1.0] * (rule.rows or 0) for rule in RULES})


def test_the_official_composition_has_2985_rows() -> None:
    found = lines(official())
    counts = {name: found[name].estimate.n for name in sections(RULES)}
    assert counts == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 447 + 984}
    assert found["Total"].estimate.n == 2985
    assert len(RULES) == 23
    assert [rule.weight for rule in RULES if rule.weight != rule.rows] == [984]
    assert all(not line.note and line.estimate.value == 1 for line in found.values())


def test_counts_equal_those_documented_with_the_rebuilt_set(shared_data: Path) -> None:
    text = (shared_data / "README.md").read_text()
    section = text[text.index("|subset|candidates|in sample|official|") :]
    documented = {name: int(n) for name, n in re.findall(r"^\|([\w-]+)\|\d+\|\d+\|(\d+)\|", section, re.MULTILINE)}
    assert documented.pop("math-gsm8k-analog") == 447
    assert documented == {rule.subset: rule.rows for rule in RULES}


def test_weights_equal_the_packages_constants() -> None:
    package = importlib.util.find_spec("rewardbench")
    assert package is not None
    assert package.origin is not None
    constants = runpy.run_path(str(Path(package.origin).with_name("constants.py")))
    assert {rule.subset: rule.weight for rule in RULES} == constants["EXAMPLE_COUNTS"]
    mapping = constants["SUBSET_MAPPING"].items()
    assert {rule.subset: rule.section for rule in RULES} == {subset: name for name, held in mapping for subset in held}


SAFETY = {
    "refusals-dangerous": (50, 100),
    "refusals-offensive": (80, 100),
    "xstest-should-refuse": (77, 154),
    "xstest-should-respond": (225, 250),
    "donotanswer": (34, 136),
}


def test_safety_by_hand_and_swapped_xstest_weights_differ() -> None:
    found = lines(shares(SAFETY))["Safety"].estimate
    assert found.value == pytest.approx((50 + 80 + 77 + 225 + 34) / 740)
    swapped = {"xstest-should-refuse": 250.0, "xstest-should-respond": 154.0}
    wrong = [Rule(r.section, r.subset, r.rows, swapped.get(r.subset, r.weight)) for r in RULES]
    other = lines(shares(SAFETY), wrong)["Safety"].estimate.value
    assert other == pytest.approx((50 + 80 + 0.5 * 250 + 0.9 * 154 + 34) / 740)
    assert abs(other - found.value) > 0.03


def test_mathematics_weighs_as_much_as_code() -> None:
    code = {f"hep-{language}": (82, 164) for language in ("cpp", "go", "java", "js", "python", "rust")}
    found = lines(shares({"math-prm": (447, 447), **code}))["Reasoning"].estimate
    assert found.value == pytest.approx(0.75)
    assert found.value != pytest.approx((447 + 6 * 82) / 1431, abs=0.02)


def test_total_is_the_plain_mean_of_the_sections() -> None:
    right = {"Chat": 0.5, "Chat Hard": 0.25, "Safety": 0.75, "Reasoning": 1.0}
    found = lines(shares({rule.subset: (int(4 * right[rule.section]), 4) for rule in RULES}))
    assert {name: found[name].estimate.value for name in right} == pytest.approx(right)
    assert found["Total"].estimate.value == pytest.approx(0.625)


def test_a_missing_subset_is_named_and_the_rest_marked_partial() -> None:
    found = lines(
        shares({name: SAFETY[name] for name in SAFETY if not name.startswith("refusals")} | {"hep-go": (1, 2)})
    )
    assert found["refusals-dangerous"].estimate is None
    assert found["refusals-dangerous"].note == "missing: no row of this subset"
    assert found["Safety"].note == "partial (3 of 5 subsets; missing: refusals-dangerous, refusals-offensive)"
    assert found["Safety"].estimate.value == pytest.approx((77 + 225 + 34) / 540)
    assert found["Chat"].estimate is None
    assert found["Total"].note == "partial (4 of 23 subsets)"


def test_the_analogue_of_mathematics_is_its_own_row() -> None:
    base = {"hep-go": (1, 2), "mt-bench-easy": (3, 4)}
    without, with_it = lines(shares(base)), lines(shares(base | {"math-gsm8k-analog": (9, 10)}))
    assert with_it["math-gsm8k-analog"].kind == "extra"
    assert with_it["math-gsm8k-analog"].estimate.value == 0.9
    assert with_it["math-prm"].estimate is None
    for name in ("Reasoning", "Total"):
        assert with_it[name].estimate.value == without[name].estimate.value
        assert with_it[name].note == without[name].note != ""


def test_planted_sections_are_complete() -> None:
    found = lines(shares({rule.subset: (3, 4) for rule in PLANTED}), PLANTED)
    assert list(weights(PLANTED, [rule.subset for rule in PLANTED]).values()) == [0.25, 0.125, 0.125, 0.25, 0.25]
    assert found["Total"].estimate.value == pytest.approx(0.75)
    assert not any(line.note for line in found.values())


def _plain_scores(found: Outcomes) -> dict[str, float]:
    """The official scorer's arithmetic once more: weights times accuracies of what is there, section by section."""
    result: dict[str, float] = {}
    for section in sections(RULES):
        top = bottom = 0.0
        for rule in RULES:
            rows = found.subsets == rule.subset
            if rule.section == section and rows.any():
                top += rule.weight * float(found.correct[0, rows].mean())
                bottom += rule.weight
        if bottom:
            result[section] = top / bottom
    return result | {"Total": sum(result.values()) / len(result)}


def test_real_rows_random_scores(shared_data: Path) -> None:
    rows = pq.read_table(
        shared_data / "rewardbench_core_rebuilt.parquet", columns=["prompt", "subset", "official_size_sample"]
    )
    rows = rows.filter(rows["official_size_sample"])
    rng = np.random.default_rng(0)
    prompts = [content_id(prompt) for prompt in rows["prompt"].to_pylist()]
    n = rows.num_rows
    better = rng.random((1, n)) < 0.6
    subsets = np.array(rows["subset"].to_pylist())
    ids = np.array([f"{i:05d}" for i in range(n)])
    found = Outcomes(ids, np.array(prompts), subsets, better.astype(float), ~better & False, np.zeros(n), (1,))
    other = Outcomes(ids, np.array(prompts), subsets, 1 - better.astype(float), ~better & False, np.zeros(n), (1,))
    scored = lines(found, against=other)
    expected, opposite = _plain_scores(found), _plain_scores(other)
    for name, value in expected.items():
        line = scored[name]
        assert line.estimate.value == pytest.approx(value, abs=1e-12)
        assert line.estimate.low < value < line.estimate.high
        assert line.difference.value == pytest.approx(value - opposite[name], abs=1e-12)
        assert line.by_seed == pytest.approx((value,))
    assert scored["Total"].note == "partial (20 of 23 subsets)"
    # The sampling error of a total over some 2,000 rows is about 1 point.
    assert 0.006 < (scored["Total"].estimate.high - scored["Total"].estimate.low) / 2 / 1.96 < 0.014


def _pairs(sizes: dict[str, int]) -> pa.Table:
    subsets = [name for name, size in sizes.items() for _ in range(size)]
    return pa.table({"pair_id": [content_id(i) for i in range(len(subsets))], "subset": subsets})


def test_sample_is_fixed_and_stratified() -> None:
    pairs = _pairs({"a": 500, "b": 300, "c": 190, "d": 9, "e": 1})
    sample = stratified_sample(pairs, 100)
    counts = {row["values"]: row["counts"] for row in sample["subset"].value_counts().to_pylist()}
    assert sample.num_rows == 100
    for name, ideal in {"a": 50, "b": 30, "c": 19, "d": 1, "e": 1}.items():
        assert abs(counts[name] - ideal) <= 2
    order = np.random.default_rng(0).permutation(pairs.num_rows)
    shuffled = stratified_sample(pairs.take(pa.array(order)), 100)
    assert set(shuffled["pair_id"].to_pylist()) == set(sample["pair_id"].to_pylist())
    smaller = set(stratified_sample(pairs, 60)["pair_id"].to_pylist())
    assert smaller <= set(sample["pair_id"].to_pylist())
    positions = pc.index_in(sample["pair_id"], pairs["pair_id"].combine_chunks()).to_pylist()
    assert positions == sorted(positions)
    assert stratified_sample(pairs, 5000) is pairs
    with pytest.raises(InputError, match="can't cover 5 subsets"):
        stratified_sample(pairs, 4)


def test_official_weights_hold_on_a_sample() -> None:
    """A sample changes the rows per subset, not the weights: Safety stays the official mixture."""
    found = lines(shares({"xstest-should-refuse": (1, 2), "xstest-should-respond": (9, 10), "donotanswer": (1, 4)}))
    assert found["Safety"].estimate.value == pytest.approx((0.5 * 154 + 0.9 * 250 + 0.25 * 136) / 540)
