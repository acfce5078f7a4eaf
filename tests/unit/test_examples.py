"""Figure 1: which pairs it takes, how their tokens are set in lines, and that it draws any text."""

from __future__ import annotations

import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from realdata import HARMLESS, real_pairs, smollm2
from shallow_signals.data.pairs import PAIRS
from shallow_signals.files import InputError
from shallow_signals.models.tokens import tokenize_pairs
from shallow_signals.paper import readings as sentences
from shallow_signals.paper.example_figure import draw_examples, drawable
from shallow_signals.paper.gather import gather
from shallow_signals.signal.examples import COLUMNS, SHORTEST, choose, early_share, example_rows
from shallow_signals.signal.implicit import LogRatios, PairRatios
from shallow_signals.signal.token_lines import LINES, MARKS, WIDTH, fits, token_lines, token_texts

NASTY = [
    "NA",
    "",
    " ",
    '"',
    ",",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    "$x^2$",
    " \\frac{",
    "漢字",
    "🙂",
    "\u0301",
    "\x00",
    "עברית",
    "_",
    "nan",
]


def response(values: list[float]) -> LogRatios:
    return LogRatios(np.array(values, np.float32), np.zeros(0, np.int32), np.zeros(0, np.float32))


def pair(name: str, chosen: list[float], rejected: list[float]) -> PairRatios:
    return PairRatios(name, response(chosen), response(rejected))


EARLY = pair("early", [3, 1, 0, 0], [0, 0, 0, 0])
LATE = pair("late", [0, 0, 1, 3], [0, 0, 0, 0])
EVEN = pair("even", [1, 1, 1, 1], [0, 0, 0, 0])
FAINT = pair("faint", [0.1, 0, 0, 0], [0, 0, 0, 0])  # earlier than any, but next to nothing
WRONG = pair("wrong", [-3, -9, 0, 0], [0, 0, 0, 0])


def test_shares_of_the_signal() -> None:
    assert [early_share(p) for p in (EARLY, LATE, EVEN)] == [1.0, 0.0, 0.5]
    opposed = pair("opposed", [2, 0, 0, 0], [0, 0, 1, 0])  # +2 before the cut, -1 after it
    assert early_share(opposed) == pytest.approx(2 / 3)
    assert early_share(pair("nothing", [0, 0], [0, 0])) == 0.5


def test_the_extremes_of_the_clearly_right_pairs_are_chosen() -> None:
    pairs = [FAINT, EVEN, LATE, WRONG, EARLY]
    for order in (pairs, pairs[::-1]):
        assert {kind: p.pair_id for kind, p in choose(order).items()} == {"early": "early", "late": "late"}
    twins = [pair(name, [3, 1, 0, 0], [0, 0, 0, 0]) for name in ("b", "a", "c")]
    assert choose(twins)["early"].pair_id == "a"
    assert choose([EVEN]) == {"early": EVEN}
    assert choose([WRONG]) == {}


def test_tokens_join_to_their_text() -> None:
    # "é" of two tokens: both are reported to stand for it.
    assert token_texts("né.", [0, 1, 1, 2], [1, 2, 2, 3]) == ["n", "é", "", "."]


def test_tokens_of_real_text_join_to_it(shared_data: Path) -> None:
    table, _ = tokenize_pairs(real_pairs(shared_data, HARMLESS, 60), smollm2(), "auto")
    for row in table.to_pylist():
        tokens = token_texts(row["chosen"], row["chosen_starts"], row["chosen_ends"])
        assert "".join(tokens) == row["chosen"]
        assert len(tokens) == len(row["chosen_ids"])
        lines = token_lines(tokens)
        assert max(sum(len(piece.text) for piece in line) for line in lines) <= WIDTH
        assert {piece.token for line in lines for piece in line} == set(range(len(tokens)))
        shown = "".join(piece.text for line in lines for piece in line)
        plain = "".join(MARKS.get(char, char) for char in row["chosen"])
        assert shown.replace(" ", "").replace(MARKS[""], "") == plain.replace(" ", "")
        for line in lines:
            for left, right in pairwise(line):
                assert left.column + len(left.text) == right.column


def test_lines_break_between_words_and_after_line_feeds() -> None:
    def shown(tokens: list[str], width: int) -> list[str]:
        return ["".join(piece.text for piece in line) for line in token_lines(tokens, width)]

    assert shown(["one", " two", " th", "ree"], 8) == ["one two", "three"]
    assert shown(["a", "\n", "b"], 8) == ["a" + MARKS["\n"], "b"]
    assert shown(["abcdefghij"], 4) == ["abcd", "efgh", "ij"]
    assert shown(["a", "", "b"], 8) == ["a" + MARKS[""] + "b"]
    assert shown(["ab", " ", " ", "cd"], 4) == ["ab  ", "cd"]


def test_room_is_counted_in_lines() -> None:
    assert fits(["x" * WIDTH] * LINES)
    assert not fits(["x" * WIDTH] * LINES + ["y"])
    assert not fits(["\n"] * (LINES + 1))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, list[PairRatios]]:
    """Four pairs of one-letter tokens on disk: early, late, one too short and one without room."""
    sizes = {"early": 24, "late": 24, "short": SHORTEST - 1, "long": WIDTH * LINES + 1}
    rows, pairs, ratios = [], [], []
    for name, size in sizes.items():
        text, starts = "x" * size, list(range(size))
        offsets = {"starts": starts, "ends": [s + 1 for s in starts]}
        sides = {f"{side}_{what}": values for side in ("chosen", "rejected") for what, values in offsets.items()}
        rows.append({"pair_id": name, "chosen": text, "rejected": text, **sides})
        prompt = [{"role": "user", "content": "First?"}, {"role": "user", "content": "Why  so\nlong?"}]
        pairs.append({"pair_id": name, "prompt": prompt})
        values = [1.0 if (t < size // 2) == (name != "late") else 0.0 for t in range(size)]
        ratios.append(pair(name, values, [0.0] * size))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "tokens.parquet")
    schema = pa.schema([PAIRS.field("pair_id"), PAIRS.field("prompt")])
    pq.write_table(pa.Table.from_pylist(pairs, schema), tmp_path / "pairs.parquet")
    return tmp_path / "tokens.parquet", tmp_path / "pairs.parquet", ratios


def test_only_pairs_that_have_room_are_shown(files: tuple[Path, Path, list[PairRatios]]) -> None:
    tokens, pairs, ratios = files
    frame = pd.DataFrame(example_rows(ratios, tokens, pairs), columns=COLUMNS)
    assert dict(zip(frame["kind"], frame["pair_id"], strict=True)) == {"early": "early", "late": "late"}
    assert set(frame["fitting"]) == {2}
    chosen = frame[(frame["kind"] == "early") & (frame["side"] == "chosen")]
    assert chosen["position"].tolist() == list(range(1, 25))
    assert chosen["kept"].tolist() == [True] * 12 + [False] * 12
    assert chosen["log_ratio"].sum() == 12
    (said,) = sentences.examples(frame.assign(label="Some"))
    assert "1.000 (early) and 0.000 (late)" in said
    assert frame[frame["side"] == "prompt"]["token"].tolist() == ["Why  so\nlong?"] * 2
    with pytest.raises(InputError, match=r"leave this implicit reward out of figures\.figure1"):
        list(example_rows(ratios[2:], tokens, pairs))
    missing = [pair("gone", [1.0], [0.0])]
    with pytest.raises(InputError, match=r"tokens\.parquet: lacks 1 scored pairs, gone first"):
        list(example_rows(missing, tokens, pairs))


def test_any_text_is_drawn_from_the_table_alone(tmp_path: Path) -> None:
    rows = [{"side": "prompt", "position": 0, "token": "".join(NASTY)}]
    for side in ("chosen", "rejected"):
        for t, token in enumerate([*NASTY, *NASTY], start=1):
            rows.append(
                {"side": side, "position": t, "token": token, "log_ratio": 1.5 - t / 10, "kept": t <= len(NASTY)}
            )
    frame = pd.DataFrame(rows, columns=COLUMNS)
    frame[["kind", "pair_id", "early_share", "median", "fitting"]] = ["late", "p", 0.25, 0.5, 7]
    frame.to_csv(tmp_path / "one.csv", index=False)
    gather([("A $label$", str(tmp_path / "one.csv")), ("漢字", str(tmp_path / "one.csv"))], tmp_path / "figure1.csv")
    back = pd.read_csv(tmp_path / "figure1.csv", keep_default_na=False)
    assert back[(back["side"] == "chosen") & (back["label"] == "漢字")]["token"].tolist() == [*NASTY, *NASTY]
    (tmp_path / "one.csv").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for again in ("a", "b"):
            draw_examples(tmp_path / "figure1.csv", [tmp_path / f"{again}.png", tmp_path / f"{again}.pdf"])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    (tmp_path / "bad.csv").write_text("label,kind\nx,early\n")
    with pytest.raises(InputError, match=r"bad\.csv: no column .*token"):
        draw_examples(tmp_path / "bad.csv", [tmp_path / "bad.png"])


def test_what_the_font_lacks_becomes_a_box() -> None:
    assert drawable("aé漢🙂\x00\u200b") == "aé□□□□"


def test_nothing_to_gather_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"figure1\.csv: there is nothing to show"):
        gather([], tmp_path / "figure1.csv")
