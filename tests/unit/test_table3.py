"""Table 3 against AlpacaEval's own numbers on real annotations, and by hand."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from alpaca_eval.metrics import get_winrate, glm_winrate

from shallow_signals.config.generation import LengthControl
from shallow_signals.config.statistics import Statistics
from shallow_signals.data.instructions import INSTRUCTIONS
from shallow_signals.evaluation.alpaca_files import COLUMNS, write_annotations
from shallow_signals.evaluation.length_control import lc_difference, length_controlled
from shallow_signals.evaluation.regulariser import fetch_length_control, read_difficulties, standin_regulariser
from shallow_signals.files import InputError, write_parquet
from shallow_signals.paper.layout import Cell, Table
from shallow_signals.paper.readings import win_rates
from shallow_signals.paper.render import to_csv, to_latex, to_markdown
from shallow_signals.paper.table3 import table3

CHECK = "alpacaeval_leaderboard_check"
QUICK = Statistics(resamples=500)


def hand_made(n: int, wins: float, longer: float, seed: int, generator: str) -> pd.DataFrame:
    """Annotations with a known share of wins, of outputs about `longer` times as long as the reference's."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(40, 90, n)
    columns = {
        "instruction": [f"task {i}" for i in range(n)],
        "output_1": ["x" * int(k) for k in rng.integers(40, 90, n)],
        "output_2": ["y" * int(k * longer) for k in lengths],
        "generator_1": "tiny",
        "generator_2": generator,
        "annotator": "truth",
        "preference": np.where(rng.permutation(n) < wins * n, 2.0, 1.0),
    }
    return pd.DataFrame(columns)[COLUMNS]


def comparison(folder: Path, frames: dict[str, pd.DataFrame], **changes: Any) -> dict[str, Any]:
    paths = {}
    for member, frame in frames.items():
        paths[member] = str(folder / f"{member}.json")
        write_annotations(folder / f"{member}.json", frame)
    return {
        "comparison": "one",
        "label": "Planted",
        "instructions": "Planted prompts",
        "judge": "the planted truth",
        "against": "base",
        "base": "tiny Llama",
        "annotations": paths,
        "seeds": {member: 7 for member in frames if member != "base"},
        "length_control": {},
    } | changes


def cells(table: Table) -> dict[tuple[str, str], Cell]:
    """Metric and column to the cell."""
    return {
        (row.label, name): cell for row in table.rows for (name, _), cell in zip(table.columns, row.cells, strict=True)
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Table, dict[str, pd.DataFrame]]:
    frames = {
        "head50": hand_made(120, 0.75, 1.1, 3, "head50"),
        "base": hand_made(120, 0.5, 1.0, 1, "base"),
        "full": hand_made(120, 0.8, 1.2, 2, "full"),
    }
    frames["full"].loc[:5, "preference"] = 1.5
    return table3([comparison(tmp_path_factory.mktemp("made"), frames)], QUICK), frames


def test_numbers_are_alpacaevals_own(
    made: tuple[Table, dict[str, pd.DataFrame]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table, frames = made
    found = cells(table)
    standin_regulariser(np.zeros(120)).rows.to_csv(tmp_path / "gamed.csv", index=False)
    monkeypatch.setattr(glm_winrate, "hf_hub_download", lambda **_: str(tmp_path / "gamed.csv"))
    name = "LC win rate (stand-in regulariser, no difficulties)"
    for member, frame in frames.items():
        assert found["Win rate", member].estimate is not None
        assert found["Win rate", member].estimate.value == pytest.approx(get_winrate(frame)["win_rate"])  # type: ignore[union-attr]
        official = glm_winrate.get_length_controlled_winrate(
            frame.copy(), save_weights_dir=None, is_warn_extreme_changes=False
        )
        assert found[name, member].estimate.value == pytest.approx(official["length_controlled_winrate"], abs=1e-6)  # type: ignore[union-attr]


def test_layout_is_the_papers(made: tuple[Table, dict[str, pd.DataFrame]]) -> None:
    table, frames = made
    assert [name for name, _ in table.columns] == ["base", "full", "head50"]
    assert [label for _, label in table.columns] == ["tiny Llama", "Original Dataset", "50%"]
    found = cells(table)
    assert found["Win rate", "full"].difference is None and found["Win rate", "base"].difference is not None
    wins = {member: frame["preference"] - 1 for member, frame in frames.items()}
    difference = found["Win rate", "head50"].difference
    assert difference is not None
    assert difference.value == pytest.approx(100 * float((wins["head50"] - wins["full"]).mean()))
    assert difference.low < difference.value < difference.high and difference.n == 120
    assert found["Win rate", "head50"].verdict == "undecided"  # one run of each
    assert (found["Win rate", "base"].seeds, found["Win rate", "full"].seeds) == ((), (7,))
    ratio = found["Length ratio (medians)", "full"].estimate
    lengths = [frames["full"][side].str.len().median() for side in ("output_2", "output_1")]
    assert ratio is not None and ratio.value == pytest.approx(lengths[0] / lengths[1])
    assert {found["LC fit converged", member].text for member in frames} == {"yes"}


def test_caption_names_judge_and_reference(made: tuple[Table, dict[str, pd.DataFrame]], tmp_path: Path) -> None:
    table, _ = made
    text = to_markdown(table)
    assert "judged by the planted truth against the base model's own outputs (tiny Llama)" in text
    assert "120 instructions of Planted prompts" in text and "not AlpacaEval's number" in text
    frames = {"full": hand_made(20, 0.8, 1, 1, "full")}
    stored = table3([comparison(tmp_path, frames, against="stored", judge="gpt-4o-2024-08-06")], QUICK)
    assert "judged by gpt-4o-2024-08-06 against the stored outputs of tiny;" in stored.caption


def test_all_three_forms(made: tuple[Table, dict[str, pd.DataFrame]]) -> None:
    table, _ = made
    full = cells(table)["Win rate", "full"].estimate
    assert full is not None
    printed = f"{full.value:.2f}"
    assert f"**{printed}** [{full.low:.1f}, {full.high:.1f}]" in to_markdown(table)
    assert rf"\textbf{{{printed}}}" in to_latex(table) and r"\toprule" in to_latex(table)
    assert "Instructions (clusters)" in to_markdown(table) and "on the same instructions" in to_latex(table)
    lines = to_csv(table).splitlines()
    assert len(lines) == 1 + 4 * 3
    assert sum(f",{full.value:.6f}," in line for line in lines) == 1
    assert [line.split(",")[-1] for line in lines[-3:]] == ["yes"] * 3


def test_its_reading_says_what_stands_in_it(made: tuple[Table, dict[str, pd.DataFrame]]) -> None:
    table, _ = made
    said = list(win_rates(pd.read_csv(StringIO(to_csv(table)))))
    assert len(said) == 2  # raw and length-controlled; neither ratios nor the fit's end
    found = cells(table)
    full, base = found["Win rate", "full"].estimate, found["Win rate", "base"].estimate
    gap = found["Win rate", "head50"].difference
    assert full is not None and base is not None and gap is not None
    assert f"{full.value:.1f} [{full.low:.1f}, {full.high:.1f}] for the policy of whole responses" in said[1]
    assert f"{base.value:.1f} [{base.low:.1f}, {base.high:.1f}] for the model that it started from" in said[1]
    assert f"(difference {gap.value:+.1f} [{gap.low:+.1f}, {gap.high:+.1f}])" in said[1]
    assert "of 1 other policies differ" in said[1]


def test_the_published_win_rates(shared_data: Path, tmp_path: Path) -> None:
    """Real annotations of two models: WR as published, LC within two points by the difficulties' file."""
    everything = pd.read_parquet(shared_data / CHECK / "dev_annotations.parquet").assign(annotator="gpt-4")
    published = pd.read_csv(shared_data / CHECK / "dev_expected.csv", index_col="model")
    names = {"base": "claude-2", "full": "FuseChat-Llama-3.1-8B-Instruct"}
    frames = {member: everything[everything["model"] == name][COLUMNS] for member, name in names.items()}
    difficulty = str(shared_data / CHECK / "instruction_difficulty_estimated.csv")
    row = comparison(tmp_path, frames, against="stored", length_control={"difficulty": difficulty})
    table = table3([row], QUICK)
    found = cells(table)
    for member, name in names.items():
        rate, controlled = found["Win rate", member], found["LC win rate (stand-in regulariser)", member]
        assert rate.estimate is not None and controlled.estimate is not None and rate.estimate.n == 805
        assert abs(rate.estimate.value - published.loc[name, "win_rate"]) < 1e-6
        assert abs(controlled.estimate.value - published.loc[name, "length_controlled_winrate"]) < 2
    assert "stored outputs of gpt4_1106_preview" in table.caption


def test_paired_differences_of_lc_win_rates() -> None:
    """Correlated models differ with less uncertainty than two numbers by themselves; a model and itself not at all."""
    one = hand_made(200, 0.7, 1.1, 4, "one")
    two = one.copy()
    two.loc[:19, "preference"] = 3 - two.loc[:19, "preference"]
    regulariser = standin_regulariser(np.zeros(200))
    first, second = (length_controlled(frame, regulariser, QUICK) for frame in (one, two))
    difference, nothing = lc_difference(first, second, QUICK), lc_difference(first, first, QUICK)
    assert difference is not None and nothing is not None
    assert (nothing.value, nothing.low, nothing.high) == (0, 0, 0)
    assert difference.value == pytest.approx(first.estimate.value - second.estimate.value)
    widths = [side.estimate.high - side.estimate.low for side in (first, second)]
    assert 0 < difference.high - difference.low < float(np.hypot(*widths)) * 0.8
    few = length_controlled(one[:30], standin_regulariser(np.zeros(30)), QUICK)
    assert lc_difference(few, few, QUICK) is None


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    frames = {"full": hand_made(30, 0.8, 1, 1, "full"), "base": hand_made(30, 0.5, 1, 2, "base")}
    frames["base"].loc[:3, "preference"] = np.nan
    first = comparison(tmp_path, frames)
    (tmp_path / "two").mkdir()
    other = comparison(tmp_path / "two", {"full": frames["full"], "tail50": frames["full"]}, label="Other")
    table = table3([first, other], QUICK)
    assert [name for name, _ in table.columns] == ["base", "full", "tail50"]
    rate = table.rows[1]
    assert rate.cells[0].note == "4 instructions not judged" and rate.cells[2].note == "not part of this comparison"
    assert rate.cells[0].difference is not None and rate.cells[0].difference.n == 26 and rate.cells[0].left_out == 4
    assert table.rows[0].cells[0].estimate is None and "fewer than 40" in table.rows[0].cells[0].note
    frames["full"] = frames["full"][::-1]
    with pytest.raises(InputError, match="Planted: the members' annotations are not of the same instructions"):
        table3([comparison(tmp_path, frames)], QUICK)
    with pytest.raises(InputError, match=r"tables\.table3: names no comparison"):
        table3([], QUICK)


def test_length_controls_files_are_checked_before_anything_is_paid_for(tmp_path: Path) -> None:
    texts = ["a", "b"]
    rows = {field.name: [None, None] for field in INSTRUCTIONS} | {"instruction": texts}
    write_parquet(tmp_path / "i.parquet", pa.table(rows, schema=INSTRUCTIONS))
    standin_regulariser([0.5, -0.5]).rows.to_csv(tmp_path / "df_gamed.csv", index=False)
    (tmp_path / "difficulty.csv").write_text(",d_difficulty\n0,0.5\n1,-0.5\n")
    files = LengthControl(gamed="df_gamed.csv", difficulty="difficulty.csv", repo=str(tmp_path))

    def fetch(part: Any, spec: LengthControl = files, root: Path | None = None) -> Path:
        out = tmp_path / "out" / f"{part}.csv"
        fetch_length_control(spec, part, tmp_path / "i.parquet", out, root, {})
        return out

    assert fetch("gamed").read_text() == (tmp_path / "df_gamed.csv").read_text()
    assert read_difficulties(fetch("difficulty"), texts).tolist() == [0.5, -0.5]
    offline = LengthControl(gamed="df_gamed.csv", repo="nobody/nothing", offline=tmp_path.name)
    assert fetch("gamed", offline, tmp_path.parent).is_file()
    standin_regulariser(np.zeros(3)).rows.to_csv(tmp_path / "df_gamed.csv", index=False)
    with pytest.raises(InputError, match="knows 3 instructions, the comparison has 2"):
        fetch("gamed")
    (tmp_path / "difficulty.csv").write_text(",d_difficulty\n0,0.5\n")
    with pytest.raises(InputError, match="1 difficulties for 2 instructions"):
        fetch("difficulty")
    with pytest.raises(InputError, match=r"no file 'gone\.csv'"):
        fetch("gamed", LengthControl(gamed="gone.csv", repo=str(tmp_path)))
