"""The results page: every number on it stands in the data, and a page that disagrees with its data is refused."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pandas as pd
import pytest

from shallow_signals.evaluation import curves
from shallow_signals.evaluation.statistics import Estimate
from shallow_signals.files import InputError, write_json
from shallow_signals.paper import readings
from shallow_signals.paper.layout import Cell, Row, Table
from shallow_signals.paper.page import publish, render_page, write_page
from shallow_signals.paper.render import write_table
from shallow_signals.paper.run_facts import run_facts
from shallow_signals.signal.curves import COLUMNS
from workflow_copy import ROOT

PUBLISHED = sorted(path.parent for path in (ROOT / "docs" / "results").glob("*/run.json"))
NUMBER = re.compile(r"(?<![\w.])[+-]?\d+\.\d{3}(?!\d)")


def estimate(value: float) -> Estimate:
    return Estimate(value, value - 0.031, value + 0.029, 400, 300, "made up")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    results = tmp_path / "results"
    cells = (
        Cell(estimate(0.612), seeds=(1,)),
        Cell(estimate(0.587), difference=estimate(-0.025), verdict="undecided", seeds=(1,)),
    )
    heads = (("full", "Original Dataset"), ("head50", "50%"))
    rows = (Row("Harmless", "Total, partial (20 of 23 subsets)", cells),)
    write_table(Table("table1", "Some table.", ("Dataset", "Dimension"), heads, rows), results / "tables/table1")
    rows = (Row("Harmless", "probe: early", (cells[0],)), Row("Harmless", "reward model: undecided", (cells[0],)))
    write_table(
        Table("verdicts", "Verdicts.", ("Dataset", "Instrument"), (("whole", "whole"),), rows),
        results / "tables/verdicts",
    )
    curve = [
        ("ratio", "head", x, 0.5 + x / 1000, 0.4, 0.7, 400, 300, 1, 0, None, None, None) for x in (25, 50, 90, 100)
    ]
    curve += [("ratio", "tail", 50, 0.533, 0.5, 0.571, 400, 300, 1, 0, -0.017, -0.044, 0.013)]
    (results / "figures").mkdir()
    pd.DataFrame(curve, columns=COLUMNS).assign(label="Harmless").to_csv(results / "figures/figure2.csv", index=False)
    (results / "figures/figure2.png").write_bytes(b"png")
    points = [
        ("reference", "reference", 0.0, 0.0, 0.0, 0.0, -0.141, -0.282, 0.013),
        ("policy", "policy", 0.0, 0.703, 0.584, 0.822, -0.013, -0.156, 0.131),
        ("mixing", "mix2", 2.0, 2.712, 2.241, 3.181, 0.184, 0.017, 0.343),
        ("mixing", "mix3", 3.0, 5.933, 4.892, 6.991, 0.472, 0.298, 0.654),
        ("length", "length4", 4.0, 6.067, 5.991, 7.078, -0.122, -0.271, 0.034),
    ]
    names = ["kind", "name", "parameter", "kl", "kl_low", "kl_high", "reward", "reward_low", "reward_high"]
    pd.DataFrame(points, columns=names).assign(label="Alpaca", n=48).to_csv(
        results / "figures/figure4.csv", index=False
    )
    read = [
        ("harmless", "Harmless", test_set, truncation, x, accuracy + x / 1000, 0.391, 0.722, 400, 300, 1)
        for test_set, accuracy in (("heldout", 0.511), ("other", 0.131))
        for truncation, x in (("full", 50), ("full", 85), ("full", 100), ("tail50", 50), ("head50", 100))
    ]
    pd.DataFrame(read, columns=curves.COLUMNS).to_csv(results / "figures/reward_by_cut.csv", index=False)
    (results / "probe").mkdir()
    for number, probe in enumerate(("second", "first")):
        rows = [("plain", side, 50, side, 0.623 + number / 100, 0.601, 0.657, 900) for side in ("full", "length")]
        names = ["split", "train_side", "ratio", "test", "accuracy", "low", "high", "n"]
        pd.DataFrame(rows, columns=names).to_csv(results / "probe" / f"{probe}.csv", index=False)
    (results / "benchmarks/train").mkdir(parents=True)
    (results / "benchmarks/train/one.tsv").write_text("s\tmax_rss\n12.5\t800\n")
    (results / "benchmarks/train/two.tsv").write_text("s\tmax_rss\n7.5\t-\n")
    write_json(
        results / "run.json",
        run_facts(
            "some",
            {"title": "A study", "summary": "What it is.", "probes": {"second": "HH, all", "first": "Essays"}},
            results / "benchmarks",
        ),
    )
    write_page(results)
    return results


def test_every_number_stands_in_the_data(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    known = set()
    for table in folder.rglob("*.csv"):
        for value in pd.read_csv(table).select_dtypes("number").to_numpy().ravel():
            known.update((f"{value:.3f}", f"{value:+.3f}"))
    said = NUMBER.findall("\n".join(line for line in text.splitlines() if not line.startswith("|")))
    assert len(said) > 10
    assert set(said) <= known


def test_what_it_says(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    assert text.startswith("# A study\n\nWhat it is.")
    assert "0.612 [0.581, 0.641] for models of whole responses" in text
    assert "difference -0.025 [-0.056, +0.004], undecided" in text
    assert "within 2 points of that from 90% on" in text  # .59 against .60, while .55 is too far
    assert "The instruments do not say the same" in text
    assert "| train | 2 | 20 | 800 |" in text
    assert "figures/figure2.png" in text and "figure5" not in text
    assert "-0.013 [-0.156, 0.131] at the policy, 0.703 [0.584, 0.822] nats a response away" in text
    assert "Mixing goes as far as 5.933 [4.892, 6.991] nats (a = 3), to 0.472 [0.298, 0.654]" in text
    whole = (
        "trained on whole responses (400 pairs): 0.611 [0.391, 0.722] read whole, within 2 points of that from 85% on"
    )
    assert f"{whole}; 0.561 [0.391, 0.722] read to the half." in text
    assert "trained on first halves (400 pairs): 0.611 [0.391, 0.722] read whole" in text
    first, second = text.index("### HH, all\n\n![Probe of HH, all](probe/second.png)"), text.index("### Essays")
    assert text.index("900 pairs, plain: 0.623 [0.601, 0.657]") in range(first, second)  # in the order of the run


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (("probe: early", "reward model: undecided (this run: early)"), ["They point the same way"]),
        (("probe: early", "reward model: undecided (this run: late)"), ["The instruments do not say the same"]),
        (("probe: early", "reward model: undecided"), ["The instruments do not say the same"]),
        (("probe: early", "reward model: early"), []),
    ],
)
def test_a_lack_of_seeds_is_no_disagreement(said: tuple[str, ...], words: list[str]) -> None:
    lines = list(readings.verdicts(pd.DataFrame({"group": "Harmless", "row": said})))
    assert len(lines) == 1 + len(words)
    assert all(word in line for word, line in zip(words, lines[1:], strict=True))


@pytest.mark.parametrize(
    ("low", "said"),
    [
        (0.41, "the first half of each response reaches 0.543 [0.410, 0.660] of the mean margin."),
        (math.nan, "the mean margin is not above zero beyond its interval, so there is none to share out."),
    ],
)
def test_a_share_without_an_interval_is_no_number(low: float, said: str) -> None:
    reached = {"quantity": "log_ratio", "measure": "share_reached", "axis": "ratio", "x": 50, "value": 0.543}
    rows = [reached | {"low": low, "high": low + 0.25}]
    for measure, axis in (("holding", ""), ("held_by_head", ""), ("shifted", "whole"), ("shifted", "last_quarter")):
        rows.append({"measure": measure, "axis": axis, "x": 80, "value": 0.2, "low": 0.1, "high": 0.3})
    (line,) = readings.position(pd.DataFrame(rows).assign(label="Harmless"))
    assert line.startswith(f"**Harmless**: {said}")
    assert "nan" not in line


def test_a_page_is_published_with_its_data(folder: Path, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    (docs / "figures").mkdir(parents=True)
    (docs / "figures" / "old.png").write_bytes(b"of an earlier run")
    publish(folder, docs)
    assert render_page(docs) == (docs / "README.md").read_text() == (folder / "README.md").read_text()
    assert not (docs / "figures" / "old.png").exists()
    assert not (docs / "benchmarks").exists()


def test_a_page_that_disagrees_is_refused(folder: Path, tmp_path: Path) -> None:
    page = folder / "README.md"
    page.write_text(page.read_text().replace("0.612", "0.712"))
    with pytest.raises(InputError, match="older than its data"):
        publish(folder, tmp_path / "docs")


def test_published_pages_agree_with_their_data() -> None:
    """Those that stand in docs/results, of which there may be none."""
    for published in PUBLISHED:
        assert (published / "README.md").read_text() == render_page(published), published


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run\.json"):
        render_page(tmp_path)


def test_a_probe_that_the_run_names_and_that_is_not_there(folder: Path) -> None:
    (folder / "probe/first.csv").unlink()
    with pytest.raises(InputError, match=r"first\.csv"):
        render_page(folder)
