"""Curves of KL by position, and their check, on texts whose KLs are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from shallow_signals.config.statistics import Statistics
from shallow_signals.decoding.records import Generation, to_table
from shallow_signals.evaluation.kl_by_position import COARSE, COLUMNS, FINE, Curve, kl_rows, own_samples
from shallow_signals.evaluation.kl_check import check_kl
from shallow_signals.files import InputError, write_parquet
from shallow_signals.paper.kl_figure import draw_kl

SETTINGS = Statistics(resamples=300)


def curve(level: list[float], texts: int = 100, seed: int = 0, start: int = 0) -> Curve:
    """Texts of 6 tokens to all of them, with noise around the level at each position."""
    random = np.random.default_rng(seed)
    sizes = random.integers(6, len(level) + 1, texts)
    kls = [(np.array(level[:size]) * random.uniform(0.5, 1.5, size)).astype(np.float32) for size in sizes]
    return Curve(kls, [f"p{i // 2}" for i in range(texts)], start)


def frame(found: Curve, text: str = "own") -> pd.DataFrame:
    return pd.DataFrame(kl_rows({text: found}, SETTINGS), columns=COLUMNS)


def test_each_position_is_the_mean_of_the_texts_that_reach_it() -> None:
    found = curve([3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1], start=4)
    rows = frame(found)
    rows = rows[rows["axis"] == "position"]
    assert rows["position"].tolist() == list(range(5, 17))
    for t, (_, row) in enumerate(rows.iterrows()):
        alive = [kl for kl in found.kl if len(kl) > t]
        assert row["live"] == len(alive)
        assert row["kl"] == pytest.approx(np.mean([kl[t] for kl in alive]))
        assert row["low"] < row["kl"] < row["high"]
        assert row["clusters"] == len({p for p, kl in zip(found.clusters, found.kl, strict=True) if len(kl) > t})


def test_thirds_are_each_texts_own_and_paired() -> None:
    found = curve([3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1])
    rows = frame(found).set_index("axis")
    firsts = [kl[: len(kl) // 3].mean() for kl in found.kl]
    lasts = [kl[-(len(kl) // 3) :].mean() for kl in found.kl]
    assert rows.loc["first_third", "kl"] == pytest.approx(np.mean(firsts), rel=1e-5)
    assert rows.loc["last_third", "kl"] == pytest.approx(np.mean(lasts), rel=1e-5)
    assert rows.loc["difference", "kl"] == pytest.approx(np.mean(firsts) - np.mean(lasts), rel=1e-5)
    # Texts that differ as a whole: the pairing takes that out.
    random = np.random.default_rng(1)
    scaled = Curve([kl + random.normal(0, 5) for kl in found.kl], found.clusters)
    wide = frame(scaled).set_index("axis")
    assert (wide["high"] - wide["low"])["difference"] < 0.2 * (wide["high"] - wide["low"])["first_third"]


def test_long_texts_are_shown_by_blocks() -> None:
    rows = frame(Curve([np.arange(512, dtype=np.float32)] * 3, ["a", "b", "c"]))
    fine, coarse = (rows[rows["axis"] == axis] for axis in ("position", "block"))
    assert (len(fine), len(coarse)) == (FINE, COARSE)
    np.testing.assert_allclose(fine["kl"] + 1, fine["position"])  # the KL at token t is t - 1
    np.testing.assert_allclose(coarse["kl"][:-1] + 1, coarse["position"][:-1])
    shorter = frame(Curve([np.ones(2, np.float32)] * 3, ["a", "b", "c"]))
    assert set(shorter["axis"]) == {"position", "block"}  # two tokens have no thirds


def test_blocks_begin_at_the_same_tokens_for_all_texts() -> None:
    """A continuation's first token stands at its place in the response, in the same block as other texts' there."""
    ramp = np.arange(1, 61, dtype=np.float32)
    curves = {"own": Curve([ramp] * 2, ["a", "b"]), "continued": Curve([ramp[7:]] * 2, ["a", "b"], start=7)}
    rows = pd.DataFrame(kl_rows(curves, SETTINGS), columns=COLUMNS)
    own, later = (rows[(rows["text"] == text) & (rows["axis"] == "block")].set_index("position") for text in curves)
    assert own.index[0] == 3.0 and later.index[0] == 8.0  # of five tokens each; tokens 8 to 10 of the second
    assert later.loc[8.0, "kl"] == 9.0 and own.loc[8.0, "kl"] == 8.0
    pd.testing.assert_series_equal(own["kl"][2:], later["kl"][1:])


def test_a_text_counts_in_a_block_by_its_tokens_there() -> None:
    whole, short = np.ones(60, np.float32), np.ones(51, np.float32)
    short[50] = 7.0  # one token of the eleventh block of five
    rows = frame(Curve([whole, short], ["a", "b"]))
    block = rows[(rows["axis"] == "block") & (rows["position"] == 53.0)].iloc[0]
    assert (block["kl"], block["live"], block["clusters"]) == (pytest.approx(2.0), 2, 2)  # (5 x 1 + 7) / 6


def test_only_the_policys_own_samples_count(tmp_path: Path) -> None:
    def made(prompt: str, strategy: str, kl: list[float]) -> Generation:
        values = np.array(kl, np.float32)
        tokens = np.zeros(len(kl), np.int32)
        return Generation(prompt, 0, strategy, tokens, True, values, values, values, values, values, tokens)

    path = tmp_path / "responses.parquet"
    write_parquet(
        path, to_table([made("a", "reference", [9.0]), made("a", "policy", [1, 2]), made("b", "policy", [3])])
    )
    found = own_samples(path)
    assert [kl.tolist() for kl in found.kl] == [[1, 2], [3]]
    assert found.clusters == ["a", "b"]
    write_parquet(path, to_table([made("a", "reference", [9.0])]))
    with pytest.raises(InputError, match="no samples of the policy"):
        own_samples(path)


EARLY = [3.0, 3, 2, 2, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5]


def figure3(**curves: Curve) -> pd.DataFrame:
    return pd.concat([frame(found).assign(label=label) for label, found in curves.items()])


def test_kl_sits_where_it_was_planted() -> None:
    early, late = curve(EARLY), curve(EARLY[::-1])
    found = check_kl(figure3(front=early, back=late), {"front": "front", "back": "back"})
    assert found["holds"].all() and (found["difference"] > 0).tolist() == [True, False]


@pytest.mark.parametrize(
    ("level", "profile"), [(EARLY, "back"), (EARLY[::-1], "front"), ([1.0] * 12, "front"), ([1.0] * 12, "back")]
)
def test_kl_elsewhere_fails(level: list[float], profile: str) -> None:
    with pytest.raises(InputError, match=f"one \\({profile}\\)"):
        check_kl(figure3(one=curve(level)), {"one": profile})


def test_shuffled_positions_fail_both_ways() -> None:
    """The control: the same KLs in a random order within each text are neither early nor late."""
    random = np.random.default_rng(3)
    mixed = Curve([random.permutation(kl) for kl in curve(EARLY).kl], curve(EARLY).clusters)
    for profile in ("front", "back"):
        with pytest.raises(InputError, match="not as planted"):
            check_kl(figure3(one=mixed), {"one": profile})


def test_nothing_to_check_is_no_pass() -> None:
    with pytest.raises(InputError, match="nothing to check"):
        check_kl(figure3(one=curve(EARLY)), {})
    with pytest.raises(ValueError, match="expected one"):
        check_kl(figure3(one=curve(EARLY)), {"other": "front"})


def test_drawn_from_the_table_alone(tmp_path: Path) -> None:
    texts = [frame(curve(EARLY)), frame(curve(EARLY, seed=1), "chosen"), frame(curve(EARLY, start=3), "continued")]
    both = [pd.concat(texts).assign(label="A"), frame(curve(EARLY[::-1])).assign(label="B")]
    pd.concat(both).to_csv(tmp_path / "figure3.csv", index=False)
    draw_kl(tmp_path / "figure3.csv", [tmp_path / "figure3.png", tmp_path / "figure3.pdf"])
    first = (tmp_path / "figure3.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    draw_kl(tmp_path / "figure3.csv", [tmp_path / "figure3.png"])
    assert (tmp_path / "figure3.png").read_bytes() == first
    pd.concat(both).drop(columns="live").to_csv(tmp_path / "figure3.csv", index=False)
    with pytest.raises(InputError, match="no column live"):
        draw_kl(tmp_path / "figure3.csv", [tmp_path / "figure3.png"])
