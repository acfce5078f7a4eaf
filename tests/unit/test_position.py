"""The signal by position against brute force, and on arrays whose signal is planted."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from shallow_signals.config.statistics import Statistics
from shallow_signals.files import InputError
from shallow_signals.paper import readings as sentences
from shallow_signals.paper.gather import gather
from shallow_signals.paper.position_figure import draw_position
from shallow_signals.signal import implicit, position
from shallow_signals.signal.implicit import LogRatios, PairRatios
from shallow_signals.signal.position_table import COLUMNS, position_rows
from shallow_signals.signal.ranks import RankReadings, rank_rows
from shallow_signals.signal.ratios import Readings

SETTINGS = Statistics(resamples=400)
PAIRS = 300


def response(values: np.ndarray | list[float]) -> LogRatios:
    tokens = np.asarray(values, np.float32)
    return LogRatios(tokens, np.zeros(0, np.int32), np.zeros(0, np.float32))


def random_pairs(seed: int, count: int = 60) -> list[PairRatios]:
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 40, (count, 2))
    return [
        PairRatios(str(i), response(random.normal(size=a)), response(random.normal(size=b)))
        for i, (a, b) in enumerate(lengths)
    ]


def arrays(pairs: list[PairRatios]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(pair.chosen.tokens, pair.rejected.tokens) for pair in pairs]


def readings(pairs: list[PairRatios], *more: list[PairRatios]) -> Readings:
    runs = [pairs, *more]
    return Readings(runs, [arrays(run) for run in runs], [pair.pair_id for pair in pairs])


def planted(first: int, last: int, seed: int = 0) -> list[PairRatios]:
    """Pairs of 40 to 48 tokens whose chosen response is ahead by .4 on tokens first ... last - 1, in noise."""
    random = np.random.default_rng(seed)
    pairs = []
    for i in range(PAIRS):
        sides = [random.normal(0, 0.3, random.integers(40, 49)) for _ in range(2)]
        sides[0][first:last] += 0.4
        pairs.append(PairRatios(str(i), *map(response, sides)))
    return pairs


def shuffled(pairs: list[PairRatios]) -> list[PairRatios]:
    """The same values in random places: the negative control."""
    random = np.random.default_rng(1)
    return [
        PairRatios(p.pair_id, *(response(random.permutation(r.tokens)) for r in (p.chosen, p.rejected))) for p in pairs
    ]


def table(found: Readings, positions: list[int], ratios: list[int]) -> pd.DataFrame:
    return pd.DataFrame(position_rows(found, positions, ratios, SETTINGS), columns=COLUMNS)


def at(frame: pd.DataFrame, measure: str, x: int, quantity: str = "log_ratio", axis: str = "position") -> pd.Series:
    keys = (frame["measure"] == measure) & (frame["quantity"] == quantity) & (frame["axis"] == axis)
    (row,) = (row for _, row in frame[keys & (frame["x"] == x)].iterrows())
    return row


def test_every_number_equals_brute_force_over_prefixes() -> None:
    pairs = random_pairs(3)
    frame = table(readings(pairs), list(range(1, 60)), [10, 33, 100])
    whole = np.mean([sum(map(float, p.chosen.tokens)) - sum(map(float, p.rejected.tokens)) for p in pairs])
    longest = max(max(len(p.chosen), len(p.rejected)) for p in pairs)
    assert frame[frame["axis"] == "position"]["x"].max() == longest
    for t in range(1, longest + 1):
        sums, gaps, read, total = [], [], 0, 0
        for pair in pairs:
            c, r = pair.chosen.tokens.tolist(), pair.rejected.tokens.tolist()
            sums.append(sum(c[:t]) - sum(r[:t]))
            read += len(c[:t]) + len(r[:t])
            total += len(c) + len(r)
            if len(c) >= t and len(r) >= t:
                gaps.append(c[t - 1] - r[t - 1])
        assert at(frame, "cumulative", t)["value"] == pytest.approx(np.mean(sums), abs=1e-6)
        assert at(frame, "share_reached", t)["value"] == pytest.approx(np.mean(sums) / whole, rel=1e-5)
        assert at(frame, "share_reached", t, "tokens")["value"] == pytest.approx(read / total)
        assert at(frame, "survivors", t, "pairs")["value"] == pytest.approx(len(gaps) / len(pairs))
        if gaps:
            found = at(frame, "signal", t)
            assert found["value"] == pytest.approx(np.mean(gaps), abs=1e-6)
            assert found["n"] == len(gaps)
    for percent in (10, 33, 100):
        margins = implicit.margins_at_ratio(pairs, percent)
        assert at(frame, "cumulative", percent, axis="ratio")["value"] == pytest.approx(margins.mean(), abs=1e-6)


def test_a_signal_in_the_first_tokens_is_found_there() -> None:
    frame = table(readings(planted(0, 8)), list(range(1, 41)), [50])
    for t in range(1, 41):
        found = at(frame, "signal", t)
        assert found["value"] == pytest.approx(0.4 if t <= 8 else 0.0, abs=0.13)  # five standard errors
    half, whole = at(frame, "share_reached", 4), at(frame, "share_reached", 8)
    assert half["low"] < 0.5 < half["high"]
    assert whole["low"] < 1 < whole["high"]
    assert at(frame, "share_reached", 8, "tokens")["value"] < 0.2 < half["low"]


def test_a_late_signal_and_a_shuffled_one_are_not_early() -> None:
    early = table(readings(planted(0, 8)), [8, 24], [50])
    late = table(readings(planted(32, 40)), [8, 24], [50])
    anywhere = table(readings(shuffled(planted(0, 8))), [8, 24], [50])
    assert at(early, "share_reached", 8)["low"] > 0.8
    assert at(late, "share_reached", 24)["high"] < 0.3
    for t in (8, 24):
        found = at(anywhere, "share_reached", t)
        assert found["low"] < at(anywhere, "share_reached", t, "tokens")["value"] < found["high"]
        assert found["high"] < at(early, "share_reached", t)["low"]


def test_an_even_signal_reaches_what_is_read() -> None:
    frame = table(readings(planted(0, 48)), [5, 10, 20, 40], [25, 50, 75])
    for t in (5, 10, 20, 40):
        found = at(frame, "share_reached", t)
        assert found["low"] < at(frame, "share_reached", t, "tokens")["value"] < found["high"]
    assert at(frame, "share_reached", 50, axis="ratio")["value"] == pytest.approx(0.5, abs=0.02)


def test_no_signal_is_no_share() -> None:
    frame = table(readings(planted(0, 0)), [10, 40], [100])
    assert np.isnan(at(frame, "share_reached", 10)["low"])
    assert at(frame, "signal", 10)["low"] < 0 < at(frame, "signal", 10)["high"]


def test_seeds_are_averaged_and_counted() -> None:
    runs = [planted(0, 8, seed=s) for s in range(3)]
    # Lengths must agree between seeds: the same texts are read.
    runs = [
        [
            PairRatios(
                a.pair_id,
                *(response(np.resize(x.tokens, len(y))) for x, y in ((b.chosen, a.chosen), (b.rejected, a.rejected))),
            )
            for a, b in zip(runs[0], run, strict=True)
        ]
        for run in runs
    ]
    frame = table(readings(*runs), [1, 8], [100])
    found = at(frame, "signal", 1)
    assert found["seeds"] == 3
    assert found["value"] == pytest.approx(
        np.mean([[p.chosen.tokens[0] - p.rejected.tokens[0] for p in run] for run in runs]), abs=1e-6
    )
    assert at(frame, "share_reached", 100, axis="ratio")["value"] == pytest.approx(1)


def test_interval_of_a_share_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(5)
    covered = 0
    for _ in range(200):
        totals = random.normal(1, 2, 300)
        margins = 0.3 * totals + random.normal(0, 1, 300)
        (found,) = position.share_reached(margins[None, :, None], totals[None], [str(i) for i in range(300)], SETTINGS)
        covered += found.low <= 0.3 <= found.high
    assert 0.89 * 200 <= covered <= 200


def test_concentration_tells_sparse_from_early() -> None:
    sparse = [0.0] * 40
    for i in (9, 19, 29, 39):
        sparse[i] = 1.0
    early = [1.0] * 4 + [0.0] * 36
    for values, held in ((sparse, 0.0), (early, 1.0)):
        assert position.tokens_holding(response(values), 0.8) == pytest.approx(4 / 40)
        assert position.held_by_head(response(values), 4 / 40) == pytest.approx(held)
    frame = table(readings([PairRatios(str(i), response(early), response(sparse)) for i in range(5)]), [1], [100])
    assert at(frame, "holding", 80, axis="ratio")["value"] == pytest.approx(0.1)
    assert at(frame, "held_by_head", 80, axis="ratio")["value"] == pytest.approx(0.5)


def test_figure_is_drawn_from_its_table_and_read_off_it(tmp_path: Path) -> None:
    pairs = planted(0, 8)
    table(readings(pairs), list(range(1, 41)), [25, 50]).to_csv(tmp_path / "position.csv", index=False)
    ranks = [np.ones(40 + i % 90, np.int32) for i in range(40)]
    rows = rank_rows(RankReadings([ranks], [str(i // 2) for i in range(40)]), [1, 2, 40, 64], SETTINGS)
    pd.DataFrame(rows, columns=COLUMNS).to_csv(tmp_path / "ranks.csv", index=False)
    paths = [(label, str(tmp_path / name)) for name in ("position.csv", "ranks.csv") for label in ("One", "Two")]
    gather(paths, tmp_path / "figure.csv")
    for again in ("a", "b"):
        draw_position(tmp_path / "figure.csv", [tmp_path / f"{again}.png", tmp_path / f"{again}.pdf"])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    frame = pd.read_csv(tmp_path / "figure.csv")
    said = list(sentences.position(frame))
    assert len(said) == 2
    known = {f"{abs(value):.3f}" for column in ("value", "low", "high") for value in frame[column].dropna()}
    numbers = re.findall(r"\d\.\d{3}", " ".join(said))
    assert len(numbers) == 2 * 15
    assert set(numbers) <= known
    (tmp_path / "bad.csv").write_text("label,x\nOne,1\n")
    with pytest.raises(InputError, match=r"bad\.csv: no column .*measure"):
        draw_position(tmp_path / "bad.csv", [tmp_path / "bad.png"])
