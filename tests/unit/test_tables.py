"""Tables from score files: numbers against plain counts, marks, gaps, the three forms."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shallow_signals.config.statistics import Statistics
from shallow_signals.config.truncation import parse
from shallow_signals.evaluation.rewardbench import Rule, load_rules
from shallow_signals.evaluation.statistics import Estimate
from shallow_signals.files import write_parquet
from shallow_signals.paper.layout import Cell, Row, Table, in_order, label_of, marked
from shallow_signals.paper.render import escape, to_latex, to_markdown, write_table
from shallow_signals.paper.tables import Scores, controls, table1, table2, table4

RULES = load_rules("planted")
QUICK = Statistics(resamples=300)
ACCURACY = {"full": 0.8, "head50": 0.79, "head25": 0.6, "tail50": 0.55, "min_length": 0.7, "pairs50": 0.75}


def score_file(path: Path, right: dict[str, np.ndarray], subsets: list[str], names: list[str] | None = None) -> Path:
    """A score table where `right` ([n] booleans per test) says which pairs are ranked right; two pairs a prompt."""
    rows: list[dict[str, Any]] = []
    for test, better in right.items():
        for i, good in enumerate(better):
            name = names[i] if names else f"{i:04d}"
            rows.append(
                {
                    "pair_id": name,
                    "cluster": f"prompt{int(name) // 2}",
                    "subset": subsets[i % len(subsets)],
                    "test": test,
                    "chosen": 1.5 if good else -1.5,
                    "rejected": 0.0,
                    "chosen_length": 10 + i % 3,
                    "rejected_length": 11,
                }
            )
    write_parquet(path, pa.Table.from_pylist(rows))
    return path


def draw(rng: np.random.Generator, share: float, n: int = 400) -> np.ndarray:
    return rng.random(n) < share


@pytest.fixture
def benchmark(tmp_path: Path) -> Scores:
    """Two experiments on a planted benchmark; the second lacks head25 and has one seed; the first three."""
    rng = np.random.default_rng(0)
    paths: dict[tuple[str, str, int], Path] = {}
    for name, seeds in (("skywork", (1, 2, 3)), ("feed", (1,))):
        for truncation, share in ACCURACY.items():
            if (name, truncation) == ("feed", "head25"):
                continue
            for seed in seeds:
                path = tmp_path / name / truncation / f"{seed}.parquet"
                subsets = [rule.subset for rule in RULES]
                paths[name, truncation, seed] = score_file(path, {"full": draw(rng, share)}, subsets)
    return paths


LABELS = {"skywork": "Skywork_100%", "feed": "Ultra & Feedback"}


def cells(path: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    with path.open(newline="") as handle:
        return {(row["group"], row["row"], row["name"]): row for row in csv.DictReader(handle)}


def plain_accuracy(paths: Scores, name: str, truncation: str, subsets: set[str]) -> float:
    found = []
    for (experiment, cut, _), path in paths.items():
        if (experiment, cut) == (name, truncation):
            rows = pq.read_table(path).to_pylist()
            found.append(np.mean([row["chosen"] > row["rejected"] for row in rows if row["subset"] in subsets]))
    return float(np.mean(found))


def test_table1_numbers_equal_plain_counts(benchmark: Scores, tmp_path: Path) -> None:
    write_table(table1(benchmark, LABELS, RULES, QUICK), tmp_path / "table1")
    found = cells(tmp_path / "table1.csv")
    for truncation in ACCURACY:
        hard = {"planted-close", "planted-longer-rejected"}
        cell = found["Skywork_100%", "Chat Hard", truncation]
        assert float(cell["value"]) == pytest.approx(plain_accuracy(benchmark, "skywork", truncation, hard), abs=1e-6)
        assert float(cell["low"]) < float(cell["value"]) < float(cell["high"])
        assert (cell["n"], cell["seeds"]) == ("160", "1 2 3")
        sections = [{"planted-easy"}, hard, {"planted-early"}, {"planted-late"}]
        mean = np.mean([plain_accuracy(benchmark, "skywork", truncation, part) for part in sections])
        total = found["Skywork_100%", "Total", truncation]
        assert float(total["value"]) == pytest.approx(mean, abs=1e-6)
        assert float(total["value"]) == pytest.approx(np.mean([float(x) for x in total["by_seed"].split()]), abs=1e-6)
    full, head25 = (found["Skywork_100%", "Total", name] for name in ("full", "head25"))
    assert float(head25["difference"]) == pytest.approx(float(head25["value"]) - float(full["value"]), abs=2e-6)
    assert (full["difference"], full["verdict"]) == ("", "")
    assert head25["verdict"] == "fails"
    assert found["Ultra & Feedback", "Total", "tail50"]["verdict"] == "undecided"
    assert found["Ultra & Feedback", "Total", "tail50"]["scope"].startswith("this run")


def test_missing_cell_is_a_dash_with_a_reason(benchmark: Scores, tmp_path: Path) -> None:
    table = table1(benchmark, LABELS, RULES, QUICK)
    write_table(table, tmp_path / "t")
    gap = cells(tmp_path / "t.csv")["Ultra & Feedback", "Total", "head25"]
    assert (gap["value"], gap["note"]) == ("", "not part of this experiment's runs")
    text = (tmp_path / "t.md").read_text()
    number = re.search(r"\[\^(\d+)\]: not part of this experiment's runs", text)
    assert number
    assert f"| —[^{number[1]}] |" in text
    assert "---$^{" in (tmp_path / "t.tex").read_text()


def test_columns_stand_in_the_papers_order(benchmark: Scores) -> None:
    table = table1(benchmark, LABELS, RULES, QUICK)
    assert [label for _, label in table.columns] == [
        "Original Dataset",
        "50%",
        "25%",
        "tail 50%",
        "shorter's length",
        "fewer pairs (50%)",
    ]
    assert in_order(["pairs50", "head33", "window50", "full", "head128tok", "head50", "tail50", "head50-char"]) == [
        "full",
        "head50",
        "head33",
        "head50-char",
        "head128tok",
        "tail50",
        "window50",
        "pairs50",
    ]
    forms = ["full", "head50", "tail128tok", "head50-char", "head400chars", "min_length", "pairs50", "topshare50"]
    assert all(parse(name) and label_of(name) for name in [*forms, "shuffled3"])
    assert len({label_of(name) for name in forms}) == len(forms)


def test_partial_benchmark_says_so(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rules = load_rules("rewardbench")
    subsets = [rule.subset for rule in rules if rule.subset not in ("math-prm", "refusals-dangerous")]
    paths = {
        ("x", cut, 1): score_file(
            tmp_path / f"{cut}.parquet", {"full": draw(rng, p, 660)}, [*subsets, "math-gsm8k-analog"]
        )
        for cut, p in (("full", 0.7), ("head50", 0.6))
    }
    table = table4(paths, {"x": "SHP"}, rules, QUICK)
    assert [row.label for row in table.rows] == [
        "Chat",
        "Chat Hard",
        "Safety (partial)",
        "Reasoning (partial)",
        "Total, partial (21 of 23 subsets)",
        "math-gsm8k-analog (not in the total)",
    ]
    text = to_markdown(table)
    assert "missing: refusals-dangerous" in text
    assert "missing: math-prm" in text


def _cell(value: float | None) -> Cell:
    return Cell() if value is None else Cell(Estimate(value, 0.0, 1.0, 10, 10, ""))


@pytest.mark.parametrize(
    ("values", "marks"),
    [
        ([0.89, 0.90, 0.90, 0.87], ["second", "best", "best", ""]),
        ([0.75002, 0.75004, 0.7, 0.7], ["best", "best", "second", "second"]),
        ([None, 0.5, 0.6], ["", "second", "best"]),
        ([0.5, 0.5], ["best", "best"]),
        ([None, 0.5], ["", ""]),
    ],
)
def test_marks_respect_ties(values: list[float | None], marks: list[str]) -> None:
    assert [cell.mark for cell in marked([_cell(value) for value in values])] == marks


@pytest.fixture
def aspects(tmp_path: Path) -> tuple[Scores, dict[str, str]]:
    """Held-out scores of two aspects on the same prompts; some pairs collapse at head50 ("kept")."""
    rng = np.random.default_rng(2)
    paths: dict[tuple[str, str, int], Path] = {}
    for name in ("helpful", "honest"):
        for seed in (1, 2, 3):
            paths[name, "full", seed] = score_file(tmp_path / f"{name}{seed}.parquet", {"full": draw(rng, 0.8)}, ["s"])
            head = tmp_path / f"{name}{seed}-head.parquet"
            full, kept = draw(rng, 0.7), draw(rng, 0.78)
            score_file(head, {"full": full}, ["s"])
            score_file(tmp_path / "part.parquet", {"kept": kept[20:]}, ["s"], [f"{i:04d}" for i in range(20, 400)])
            write_parquet(head, pa.concat_tables([pq.read_table(head), pq.read_table(tmp_path / "part.parquet")]))
            paths[name, "head50", seed] = head
    return paths, {"helpful": "Helpfulness", "honest": "Honesty"}


def test_table2_shows_both_tests_and_their_averages(aspects: tuple[Scores, dict[str, str]], tmp_path: Path) -> None:
    paths, labels = aspects
    table = table2(paths, labels, QUICK)
    assert [(row.group, row.label) for row in table.rows] == [
        (group, test) for group in ("Helpfulness", "Honesty", "Average") for test in ("full", "kept")
    ]
    write_table(table, tmp_path / "table2")
    found = cells(tmp_path / "table2.csv")
    for test in ("full", "kept"):
        parts = [found[group, test, "head50"] for group in labels.values()]
        average = found["Average", test, "head50"]
        assert float(average["value"]) == pytest.approx(np.mean([float(part["value"]) for part in parts]), abs=2e-6)
        gaps = [float(part["difference"]) for part in parts]
        assert float(average["difference"]) == pytest.approx(np.mean(gaps), abs=2e-6)
    kept = found["Honesty", "kept", "head50"]
    assert (kept["n"], kept["left_out"]) == ("380", "20")
    assert found["Honesty", "full", "full"]["value"] == found["Honesty", "kept", "full"]["value"]
    # Both aspects judge the same 200 prompts: the average has no more clusters than one of them.
    assert found["Average", "full", "head50"]["clusters"] == found["Honesty", "full", "head50"]["clusters"] == "200"


def test_average_needs_every_aspect(aspects: tuple[Scores, dict[str, str]]) -> None:
    paths, labels = aspects
    fewer = {key: path for key, path in paths.items() if key[:2] != ("honest", "head50")}
    last = table2(fewer, labels, QUICK).rows[-2]
    assert last.cells[1].estimate is None
    assert last.cells[1].note == "no average without Honesty"
    assert last.cells[0].estimate is not None


def test_controls_set_a_tail_against_the_head_of_its_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    shares = {"full": (0.8, 0.8), "head50": (0.78, 0.79), "tail50": (0.6, 0.62)}
    paths: dict[tuple[str, str, int], Path] = {}
    for name, (full, kept) in shares.items():
        right = {"full": draw(rng, full)} | ({} if name == "full" else {"kept": draw(rng, kept)})
        paths["front", name, 1] = score_file(tmp_path / f"{name}.parquet", right, ["s"])
    for shuffle in range(1, 6):
        right = {"full": draw(rng, 0.5)}
        paths["front", f"shuffled{shuffle}", 1] = score_file(tmp_path / f"s{shuffle}.parquet", right, ["s"])
    table = controls(paths, {"front": "Front"}, QUICK, {("front", "tail50", "full"): 0.61})
    rows = {row.label: dict(zip((name for name, _ in table.columns), row.cells, strict=True)) for row in table.rows}
    assert list(rows) == ["Original Dataset", "50%", "tail 50%", "shuffled labels (mean of 5)"]
    tail = rows["tail 50%"]
    gap = tail["full"].estimate.value - rows["50%"]["full"].estimate.value
    assert tail["full-head"].estimate.value == pytest.approx(gap)
    assert tail["full-head"].estimate.high < 0
    assert tail["best-full"].estimate.value == 0.61
    assert tail["best-kept"].estimate is None
    assert tail["longer"].estimate.value == pytest.approx((133 * 1 + 133 * 0.5) / 400)
    shuffled = rows["shuffled labels (mean of 5)"]["full"]
    means = [plain_accuracy(paths, "front", f"shuffled{i}", {"s"}) for i in range(1, 6)]
    assert shuffled.by_seed == pytest.approx(means)
    assert shuffled.estimate.low < 0.5 < shuffled.estimate.high
    fewer = {key: path for key, path in paths.items() if key[1] in ("full", "shuffled1")}
    alone = controls(fewer, {"front": "Front"}, QUICK).rows[-1]
    assert alone.label == "shuffled labels (one shuffle)"
    assert np.isnan(alone.cells[0].estimate.low) and "no interval" in alone.cells[0].note
    assert not any(cell.mark for row in table.rows for cell in row.cells)
    text = to_markdown(table)
    assert "0.6100 |" in text  # computed: no interval


def _plain_latex(text: str) -> str:
    return re.sub(r"\\[\\{}&%$#_]", "", re.sub(r"^%.*$", "", text, flags=re.MULTILINE))


def _check_latex(text: str) -> None:
    depth = 0
    for letter in _plain_latex(text):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        assert depth >= 0
    assert depth == 0
    assert _plain_latex(text).count("$") % 2 == 0
    assert text.isascii()
    for tabular in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        rows = [line for line in tabular[1].splitlines() if line.endswith(r"\\")]
        assert len(rows) > 3
        assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {len(tabular[0]) - 1}


def test_latex_is_well_formed(benchmark: Scores) -> None:
    text = to_latex(table1(benchmark, LABELS, RULES, QUICK))
    _check_latex(text)
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 2
    assert r"Skywork\_100\%" in text
    assert r"Ultra \& Feedback" in text
    rows = [line for line in text.splitlines() if r"\cellcolor{bestblue}" in line]
    assert len(rows) == 10
    for broken in (text.replace(r"\&", "&", 1), text.replace(r"\textbf{", r"\textbf", 1), text.replace(" & ", " ", 1)):
        with pytest.raises(AssertionError):
            _check_latex(broken)


def test_escaping_covers_latex_specials() -> None:
    assert escape(r"a_b & 50% {x} #1 $ ~ ^ \ —") == (
        r"a\_b \& 50\% \{x\} \#1 \$ \textasciitilde{} \textasciicircum{} \textbackslash{} ---"
    )


def test_markdown_is_a_table_with_as_many_cells_in_every_line(benchmark: Scores) -> None:
    text = to_markdown(table1(benchmark, LABELS | {"feed": "a|b"}, RULES, QUICK))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    widths = [len(re.findall(r"(?<!\\)\|", line)) for line in lines]
    assert widths == [10] * 12 + [9] * 12  # the differences leave out the column that they are to
    assert len(lines) == 2 * (2 + 10)
    used, defined = (
        set(re.findall(pattern, text, re.MULTILINE)) for pattern in (r"\[\^(\d+)\](?!:)", r"^\[\^(\d+)\]:")
    )
    assert used == defined


def test_other_scores_make_another_table_and_the_same_ones_the_same(benchmark: Scores, tmp_path: Path) -> None:
    first = to_markdown(table1(benchmark, LABELS, RULES, QUICK))
    assert to_markdown(table1(benchmark, LABELS, RULES, QUICK)) == first
    subsets = [rule.subset for rule in RULES]
    score_file(benchmark["skywork", "head50", 2], {"full": np.ones(400, bool)}, subsets)
    assert to_markdown(table1(benchmark, LABELS, RULES, QUICK)) != first


def test_an_empty_table_is_written(tmp_path: Path) -> None:
    paths = write_table(Table("table1", "Nothing.", ("a", "b"), (), (Row("g", "r", ()),)), tmp_path / "t.x")
    assert [path.name for path in paths] == ["t.x.csv", "t.x.md", "t.x.tex"]


def test_rules_may_be_any(benchmark: Scores) -> None:
    rules = [Rule("Only", "planted-easy", None, 1.0)]
    labels = [row.label for row in table1(benchmark, {"feed": "F"}, rules, QUICK).rows]
    assert labels[:2] == ["Only", "Total"]
    assert len(labels) == 6
