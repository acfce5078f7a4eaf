"""The probe against planted signals, other libraries and brute force."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import sparse
from scipy.optimize import minimize
from sklearn.feature_extraction.text import HashingVectorizer

from shallow_signals.config.probe import Probe
from shallow_signals.config.statistics import Statistics
from shallow_signals.config.truncation import parse
from shallow_signals.data.pairs import PAIRS, Message, Pair, content_id, pair_id, prompt_id
from shallow_signals.data.truncate import nominal_range
from shallow_signals.evaluation.statistics import binomial_interval
from shallow_signals.files import InputError
from shallow_signals.paper.probe_figure import draw_probe
from shallow_signals.signal.probe import PENALTY, fit, run_probe, summary, verdict
from shallow_signals.signal.probe_folds import assign_folds, make_splits
from shallow_signals.signal.probe_texts import FEATURES, cut, features, hash_words, window_offsets

QUICK = Statistics(resamples=200)
WORDS = 40
NEUTRAL = [f"word{i}" for i in range(60)]
GOOD, BAD = [f"good{i}" for i in range(20)], [f"bad{i}" for i in range(20)]


def table(
    rows: list[tuple[str, str, str]], clusters: list[str] | None = None, generators: list[str] | None = None
) -> pa.Table:
    """Pairs of (prompt, chosen, rejected)."""
    columns: dict[str, list[object]] = {name: [] for name in PAIRS.names}
    for number, (prompt, chosen, rejected) in enumerate(rows):
        turns: list[Message] = [{"role": "user", "content": prompt}]
        pair: Pair = {"prompt": turns, "chosen": chosen, "rejected": rejected}
        facts = {
            **pair,
            "pair_id": pair_id(pair),
            "prompt_id": prompt_id(turns),
            "source": "test",
            "split": "train",
            "cluster": clusters[number] if clusters else prompt_id(turns),
            "generator": generators[number] if generators else None,
        }
        for name, column in columns.items():
            column.append(facts.get(name))
    return pa.Table.from_pydict(columns, schema=PAIRS)


def planted(places: range, pairs: int = 600, seed: int = 0, quality: float = 0.35) -> pa.Table:
    """Responses of neutral words, but for three of `places`: mostly good words in the chosen, bad in the rejected."""
    draw = np.random.default_rng(seed)

    def response(special: list[str], other: list[str]) -> str:
        words = draw.choice(NEUTRAL, WORDS).tolist()
        for place in draw.choice(places, 3, replace=False):
            words[place] = str(draw.choice(special if draw.random() < 0.5 + quality else other))
        return " ".join(words)

    return table([(f"prompt {i}", response(GOOD, BAD), response(BAD, GOOD)) for i in range(pairs)])


def cell(frame: pd.DataFrame, side: str, test: str, ratio: int = 50, split: str = "plain") -> pd.Series:
    where = (frame.train_side == side) & (frame.test == test) & (frame.ratio == ratio) & (frame.split == split)
    assert where.sum() == 1
    return frame[where].iloc[0]


@pytest.fixture(scope="module")
def front() -> pd.DataFrame:
    return run_probe(planted(range(WORDS // 2)), Probe(dataset="front", ratios=[25, 50]), QUICK)


@pytest.fixture(scope="module")
def back() -> pd.DataFrame:
    return run_probe(planted(range(WORDS // 2, WORDS)), Probe(dataset="back", ratios=[25, 50]), QUICK)


@pytest.mark.parametrize(
    ("world", "winner", "loser", "word"), [("front", "head", "tail", "early"), ("back", "tail", "head", "late")]
)
def test_planted_signal_is_found(
    world: str, winner: str, loser: str, word: str, request: pytest.FixtureRequest
) -> None:
    frame = request.getfixturevalue(world)
    assert cell(frame, winner, "kept").accuracy > 0.8
    # The half without the signal holds neutral words only: nothing can be learnt from it, nor read off it.
    for test in ("kept", "full"):
        nothing = cell(frame, loser, test)
        low, high = binomial_interval(nothing.n // 2, nothing.n, 0.999)
        assert low < nothing.accuracy < high
    # The half with it holds all: dropping the neutral words costs nothing beyond noise.
    assert abs(cell(frame, winner, "kept").difference_to_full) < 0.05
    difference = cell(frame, "tail", "kept")
    assert (
        (difference.difference_to_head_high < -0.2) if winner == "head" else (difference.difference_to_head_low > 0.2)
    )
    assert verdict(frame) == word


def test_a_signal_everywhere_is_not_called_early_or_late() -> None:
    """Twenty worlds without a place: a 95% interval errs in one of them, and more than three would be chance of 2%."""
    probe = Probe(dataset="even", sides=["head", "tail"], ratios=[50])
    frames = [run_probe(planted(range(WORDS), seed=seed, quality=0.5), probe, QUICK) for seed in range(20)]
    words = [verdict(frame, margin=0.1) for frame in frames]
    assert words.count("everywhere") >= 17, words
    # With less room than the intervals' width nothing can be shown to be equal.
    assert "everywhere" not in [verdict(frame, margin=0.001) for frame in frames]


def test_a_signal_of_length_only_is_called_length() -> None:
    draw = np.random.default_rng(3)
    rows = []
    for i in range(400):
        shorter, longer = sorted(draw.choice(np.arange(10, 60), 2, replace=False))
        lengths = (longer, shorter) if draw.random() < 0.85 else (shorter, longer)
        rows.append((f"p{i}", *(" ".join(draw.choice(NEUTRAL, n)) for n in lengths)))
    frame = run_probe(table(rows), Probe(dataset="length", ratios=[50]), QUICK)
    longer_wins = np.mean([len(chosen) > len(rejected) for _, chosen, rejected in rows])
    assert cell(frame, "longer", "length", 100).accuracy == pytest.approx(longer_wins)
    assert cell(frame, "length", "length", 100).accuracy == pytest.approx(longer_wins)
    assert verdict(frame) == "length"
    # Where the shorter one wins, only the learnt baseline follows.
    mirrored = run_probe(table([(p, r, c) for p, c, r in rows]), Probe(dataset="short", ratios=[50]), QUICK)
    assert cell(mirrored, "longer", "length", 100).accuracy == pytest.approx(1 - longer_wins)
    assert cell(mirrored, "length", "length", 100).accuracy == pytest.approx(longer_wins)


def test_shuffled_labels_teach_nothing() -> None:
    wide = Statistics(resamples=200, confidence=0.999)
    frame = run_probe(planted(range(WORDS // 2)), Probe(dataset="front", ratios=[50]), wide)
    shuffled, true = cell(frame, "full", "shuffled", 100), cell(frame, "full", "full", 100)
    assert shuffled.low < 0.5 < shuffled.high
    assert abs(shuffled.accuracy - 0.5) < 0.1
    assert true.low > 0.5  # the control: true labels are far outside


def test_tested_on_random_labels_the_probe_is_right_half_the_time() -> None:
    """Labels drawn by a coin, kept in training and test: nothing holds from fold to fold."""
    coin = np.random.default_rng(5).random(600) < 0.5
    world = planted(range(WORDS // 2)).to_pylist()
    rows = [(r["prompt"][0]["content"], r["chosen"], r["rejected"]) for r in world]
    rows = [(p, r, c) if flip else (p, c, r) for (p, c, r), flip in zip(rows, coin, strict=True)]
    frame = run_probe(table(rows), Probe(dataset="coin", ratios=[50]), QUICK)
    found = cell(frame, "full", "full", 100)
    low, high = binomial_interval(300, 600, 0.999)
    assert low < found.accuracy < high


def test_swapping_chosen_and_rejected_mirrors_the_model(front: pd.DataFrame) -> None:
    world = planted(range(WORDS // 2), pairs=300)
    texts = [hash_words(world[name].to_pylist()) for name in ("chosen", "rejected")]
    chosen, rejected = (features(words, np.zeros_like(words.counts), words.counts) for words in texts)
    labels = np.where(np.arange(300) % 2 == 0, 1.0, -1.0)
    signed = sparse.diags(labels)
    weights = fit((signed @ (chosen - rejected)).tocsr(), labels)
    mirrored = fit((signed @ (rejected - chosen)).tocsr(), labels)
    np.testing.assert_allclose(mirrored, -weights, atol=1e-6)
    right = (chosen - rejected) @ weights > 0
    assert np.mean((rejected - chosen) @ weights > 0) == pytest.approx(1 - right.mean())
    # Swapped in training and test alike the world is the same but for its names.
    rows = [(r["prompt"][0]["content"], r["rejected"], r["chosen"]) for r in planted(range(WORDS // 2)).to_pylist()]
    swapped = run_probe(table(rows), Probe(dataset="swapped", ratios=[50]), QUICK)
    for side, test, ratio in (("full", "full", 100), ("head", "kept", 50)):
        assert cell(swapped, side, test, ratio).accuracy == pytest.approx(
            cell(front, side, test, ratio).accuracy, abs=0.01
        )


def test_weights_minimise_the_bradley_terry_loss() -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(60, 4))
    labels = np.where(np.arange(60) % 2 == 0, 1.0, -1.0)

    def loss(w: np.ndarray) -> float:
        return float(w @ w / 2 + PENALTY * np.logaddexp(0, -labels * (x @ w)).sum())

    best = minimize(loss, np.zeros(4)).x
    weights = fit(sparse.csr_matrix(x), labels)
    assert loss(weights) < loss(best) * (1 + 1e-4)
    np.testing.assert_allclose(weights, best, atol=0.02)


TEXTS = [
    "The cat sat on the mat, the cat sat.",
    "  Don't   split\nhere: naïve café-au-lait; 3.14 is π!\t",
    "one",
    "a",
    "!!! ...",
    "日本語 の 文章 です",
    "x y zz zz zz yy. yy zz",
]


@pytest.mark.parametrize(("side", "ratio"), [("head", 100), ("head", 50), ("tail", 33), ("window", 60)])
def test_features_are_those_of_scikit_learn_on_the_kept_words(side: str, ratio: int) -> None:
    words = hash_words(TEXTS)
    offsets = np.linspace(0, 0.99, len(TEXTS))
    first, kept = cut(words.counts, side, ratio, offsets)  # type: ignore[arg-type]
    parts = [" ".join(t.split()[a : a + k]) for t, a, k in zip(TEXTS, first, kept, strict=True)]
    vectorizer = HashingVectorizer(n_features=FEATURES, alternate_sign=False, ngram_range=(1, 2), dtype=np.float32)
    difference = features(words, first, kept) - vectorizer.transform(parts)
    assert abs(difference).max() < 1e-6
    other = vectorizer.transform(parts[1:] + parts[:1])  # the control: other texts have other features
    assert abs(features(words, first, kept) - other).max() > 0.1


@pytest.mark.parametrize("side", ["head", "tail", "window"])
def test_words_are_cut_as_tokens_of_the_shards_are(side: str) -> None:
    ids = [content_id("pair", i) for i in range(40)]
    counts = np.arange(1, 41)
    for ratio in (1, 10, 33, 50, 99):
        first, kept = cut(counts, side, ratio, window_offsets(ids))  # type: ignore[arg-type]
        truncation = parse(f"{side}{ratio}")
        for row, key in enumerate(ids):
            expected = nominal_range(truncation, int(counts[row]), other_tokens=None, key=key)
            assert (first[row], first[row] + kept[row]) == expected


def test_no_group_is_on_both_sides_of_a_fold() -> None:
    draw, rows = np.random.default_rng(1), 160
    frame = pd.DataFrame(
        {
            "cluster": [f"c{i}" for i in draw.integers(0, 23, rows)],
            "generator": [f"g{i}" for i in draw.integers(0, 11, rows)],
        }
    )
    probe = Probe(dataset="any", folds=4, hold_out_generators=True)
    splits = make_splits(frame, probe)
    for fold in splits["plain"]:
        for a, b in itertools.product(fold.train, fold.test):
            assert frame.cluster[a] != frame.cluster[b]
    assert sorted(np.concatenate([fold.test for fold in splits["plain"]])) == list(range(rows))
    for fold in splits["generators_held_out"]:
        for a, b in itertools.product(fold.train, fold.test):
            assert frame.cluster[a] != frame.cluster[b]
            assert frame.generator[a] != frame.generator[b]
    # The control: rows dealt out without groups do share them.
    plain = assign_folds([str(i) for i in range(rows)], 4, 0)
    assert set(frame.cluster[plain == 0]) & set(frame.cluster[plain != 0])


def test_folds_are_even_and_depend_on_names_only() -> None:
    names = [f"c{i}" for i in range(101)]
    folds = assign_folds(names, 5, 0)
    assert set(np.bincount(folds)) == {20, 21}
    order = np.random.default_rng(0).permutation(101)
    np.testing.assert_array_equal(assign_folds([names[i] for i in order], 5, 0), folds[order])
    assert (assign_folds(names, 5, 1) != folds).any()


def test_the_order_of_the_table_does_not_matter(front: pd.DataFrame) -> None:
    world = planted(range(WORDS // 2))
    shuffled = world.take(np.random.default_rng(2).permutation(len(world)))
    again = run_probe(shuffled, Probe(dataset="front", ratios=[25, 50]), QUICK)
    pd.testing.assert_frame_equal(again, front)


def test_rows_are_a_fixed_subset() -> None:
    frame = run_probe(planted(range(WORDS // 2)), Probe(dataset="front", ratios=[50], rows=200), QUICK)
    assert set(frame.n) == {200}


def test_held_out_generators_undo_a_shortcut() -> None:
    """Each chosen response ends in its writer's own word, the only signal; unseen writers have unseen words."""
    draw = np.random.default_rng(4)
    rows, writers = [], []
    for i in range(600):
        writer = f"writer{i % 12}"
        chosen, rejected = (" ".join(draw.choice(NEUTRAL, 10)) for _ in range(2))
        rows.append((f"p{i // 3}", f"{chosen} {writer}", rejected))
        writers.append(writer)
    probe = Probe(dataset="writers", ratios=[50], folds=4, hold_out_generators=True)
    frame = run_probe(table(rows, generators=writers), probe, QUICK)
    plain, held_out = (cell(frame, "full", "full", 100, split) for split in ("plain", "generators_held_out"))
    assert plain.accuracy > 0.95
    low, high = binomial_interval(held_out.n // 2, held_out.n, 0.999)
    assert low < held_out.accuracy < high
    assert held_out.n < plain.n


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda: (planted(range(20), 60), Probe(dataset="d", hold_out_generators=True)),
            "d: pairs without a generator",
        ),
        (lambda: (table([("p", "a b", f"c {i}") for i in range(60)]), Probe(dataset="d")), "can't fill 5 folds"),
        (lambda: (planted(range(20), 12), Probe(dataset="d")), "12 pairs are too few"),
    ],
)
def test_data_that_cannot_be_split_is_refused_in_one_line(
    change: Callable[[], tuple[pa.Table, Probe]], message: str
) -> None:
    pairs, probe = change()
    with pytest.raises(InputError, match=message) as error:
        run_probe(pairs, probe, QUICK)
    assert "\n" not in str(error.value)


def test_figure_is_drawn_from_the_files_and_the_same_each_time(front: pd.DataFrame, tmp_path: Path) -> None:
    csv, numbers = tmp_path / "front.csv", tmp_path / "front.json"
    front.to_csv(csv, index=False)
    numbers.write_text(json.dumps(summary(front), allow_nan=False))
    assert summary(front)["verdict"] == "early"
    drawn = []
    for name in ("one", "two"):
        outputs = [tmp_path / f"{name}.png", tmp_path / f"{name}.pdf"]
        draw_probe(csv, numbers, "Planted, front", outputs)
        drawn.append([path.read_bytes() for path in outputs])
    assert drawn[0] == drawn[1]
    assert b"CreationDate" not in drawn[0][1]
    front[front.train_side != "tail"].to_csv(csv, index=False)
    draw_probe(csv, numbers, "Planted, front", [tmp_path / "other.png"])
    assert (tmp_path / "other.png").read_bytes() != drawn[0][0]
    csv.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"front\.csv: no column"):
        draw_probe(csv, numbers, "Planted, front", [tmp_path / "none.png"])
