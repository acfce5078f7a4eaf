"""A bag-of-n-grams Bradley-Terry probe: where do the words sit that tell the chosen response from the rejected one?

P(chosen is preferred) = sigmoid(w . (phi(chosen) - phi(rejected))), the reward model of the paper's section 3 with a
linear score instead of a language model: logistic regression without an intercept on feature differences. It is cheap
enough to be trained for every part kept, and everything is tested on pairs of clusters that it has not seen.

Vectoriser and penalty are the same for every data set: a probe that is tuned to a data set answers a different question
on each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from shallow_signals.config.probe import Probe
from shallow_signals.config.statistics import Statistics
from shallow_signals.data.pairs import uniform_hash
from shallow_signals.evaluation.place import Place, place_of
from shallow_signals.evaluation.statistics import Estimate, cluster_bootstrap_mean, mean_over_runs, paired_difference
from shallow_signals.signal.probe_folds import Fold, Split, make_splits, tested_rows
from shallow_signals.signal.probe_texts import Words, cut, features, hash_words, window_offsets

SHUFFLES = 5  # one model of shuffled labels strays by 2-3 points, mostly through length
PENALTY = 3.0  # C of LogisticRegression; from 1 to 10 the accuracies on real data move by about a point

COMPARABLE = Statistics().comparable_margin

Floats = NDArray[np.float64]
Cell = tuple[str, int, str]  # train_side, ratio in percent, test


def run_probe(pairs: pa.Table, probe: Probe, statistics: Statistics) -> pd.DataFrame:
    """Cross-validated accuracies of the probe on pairs of the schema `data.pairs.PAIRS`, whatever their `split`.

    One row per `split` (plain; generators_held_out: prompts and generators of the test pairs are both unseen, and every
    prompt and every generator is tested once, which takes 1 / folds of the pairs), `train_side`, `ratio` (percent of
    the words kept in training; 100 = full) and `test`:

    * `full`, `kept`: whole responses, or what was kept of them. A pair whose scores are equal counts one half.
    * `length`: the baseline that sees the responses' lengths in characters only. `longer`: the longer one wins.
      `length`: whether the longer or the shorter one wins is learnt in the training folds.
    * `shuffled`: trained on labels flipped at random, tested on the true ones; mean and t-interval over the shuffles.

    `accuracy`, `low`, `high`, `n` (pairs), `clusters`; `difference_to_full` and `difference_to_head` with `_low` and
    `_high` are paired differences to the model of full responses tested on them, and to the head at the same ratio and
    test; missing where there is nothing to compare. Raises `InputError` for data that can't be split.
    """
    table = _select(pairs, probe)
    splits = make_splits(table, probe)
    texts = {which: hash_words(table[which].tolist()) for which in ("chosen", "rejected")}
    offsets = window_offsets(table["pair_id"].tolist())
    outcomes = _outcomes(texts, offsets, table, splits, probe)
    frames = [
        _frame(split, cells, shuffles, table["cluster"].to_numpy()[tested_rows(splits[split])], statistics)
        for split, (cells, shuffles) in outcomes.items()
    ]
    return pd.concat(frames, ignore_index=True)


def fit(differences: Any, labels: Floats, seed: int = 0) -> Floats:
    """Weights w, [features], that minimise |w|^2 / 2 + C sum log(1 + exp(-y w . x)).

    `differences` x is CSR [n, features] and `labels` y are +1 and -1, [n]: a pair's order of presentation, as
    (x, 1) and (-x, -1) mean the same. Both must occur, as scikit-learn wants two classes.
    """
    from sklearn.linear_model import LogisticRegression

    # Dual coordinate descent: a few passes over the pairs, where a quasi-Newton method needs dozens.
    model = LogisticRegression(
        C=PENALTY,
        fit_intercept=False,
        solver="liblinear",
        dual=True,
        tol=1e-2,
        max_iter=500,
        random_state=seed,
    )
    return np.asarray(model.fit(differences, labels).coef_[0], dtype=np.float64)


def _select(pairs: pa.Table, probe: Probe) -> pd.DataFrame:
    """The pairs that the probe reads, in the order of their ids, so that the table's order does not matter."""
    table = pairs.select(["pair_id", "chosen", "rejected", "cluster", "generator"]).to_pandas()
    if probe.rows is not None and probe.rows < len(table):
        drawn = np.argsort([uniform_hash("probe", pair_id) for pair_id in table["pair_id"]], kind="stable")
        table = table.iloc[drawn[: probe.rows]]
    ordered: pd.DataFrame = table.sort_values("pair_id", ignore_index=True)
    return ordered


def _cells(probe: Probe) -> Iterator[tuple[str, int]]:
    yield "full", 100
    yield from ((side, ratio) for side in probe.sides for ratio in probe.ratios if ratio < 100)


def _outcomes(
    texts: dict[str, Words],
    offsets: Floats,
    table: pd.DataFrame,
    splits: dict[Split, list[Fold]],
    probe: Probe,
) -> dict[Split, tuple[dict[Cell, Floats], list[Floats]]]:
    """Per split: for each cell, and for each shuffle, whether a tested pair is ranked right: 1, 0 or 1/2, [tested]."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    # Every second pair is presented as (rejected, chosen), label -1: the same model, and two classes.
    labels = np.where(np.arange(len(table)) % 2 == 0, 1.0, -1.0)
    found: dict[Split, tuple[dict[Cell, Floats], list[Floats]]] = {
        split: (_length_cells(table, folds), []) for split, folds in splits.items()
    }
    full = None
    with tqdm(total=len(splits) * probe.folds * (len(list(_cells(probe))) + SHUFFLES), unit="fit", desc="probe") as bar:
        for side, ratio in _cells(probe):
            kept = _differences(texts, offsets, side, ratio, labels)
            full = kept if full is None else full
            for split, folds in splits.items():
                weights = []
                for fold in folds:
                    weights.append(fit(kept[fold.train], labels[fold.train], probe.seed))
                    bar.update()
                cells, shuffles = found[split]
                cells[side, ratio, "full"] = _ranked_right(full, labels, folds, weights)
                if side != "full":
                    cells[side, ratio, "kept"] = _ranked_right(kept, labels, folds, weights)
                    continue
                for number in range(SHUFFLES):
                    flipped = labels * _random_signs(len(table), probe.seed, number)
                    weights = []
                    for fold in folds:
                        weights.append(fit(full[fold.train], flipped[fold.train], probe.seed))
                        bar.update()
                    shuffles.append(_ranked_right(full, labels, folds, weights))
    return found


def _differences(texts: dict[str, Words], offsets: Floats, side: str, ratio: int, labels: Floats) -> Any:
    """label * (phi(chosen) - phi(rejected)) of the kept parts: CSR [n, features]."""
    from scipy import sparse

    chosen, rejected = (
        features(words, *cut(words.counts, "head" if side == "full" else side, ratio, offsets))  # type: ignore[arg-type]
        for words in texts.values()
    )
    return (sparse.diags(labels.astype(np.float32)) @ (chosen - rejected)).tocsr()


def _random_signs(n: int, seed: int, number: int) -> Floats:
    """+1 and -1, half of each, in the order of a seeded shuffle, [n]."""
    signs = np.where(np.arange(n) < n // 2, 1.0, -1.0)
    return np.asarray(np.random.default_rng([seed, number]).permutation(signs))


def _ranked_right(differences: Any, labels: Floats, folds: list[Fold], weights: list[Floats]) -> Floats:
    """1 where a tested pair's chosen response scores higher, 1/2 at equal scores; tested rows in order, [tested]."""
    right = np.full(len(labels), np.nan)
    for fold, weight in zip(folds, weights, strict=True):
        right[fold.test] = _wins(labels[fold.test] * (differences[fold.test] @ weight))
    return right[tested_rows(folds)]


def _wins(margins: Floats) -> Floats:
    return (np.sign(margins) + 1) / 2


def _length_cells(table: pd.DataFrame, folds: list[Fold]) -> dict[Cell, Floats]:
    """The two baselines that see lengths only.

    A logistic regression on one feature without an intercept ranks by the sign of its weight, which is that of the
    feature's mean over the training pairs (the loss is convex, and its slope at 0 is minus half that sum).
    """
    margin = np.log1p(table["chosen"].str.len().to_numpy(np.float64)) - np.log1p(
        table["rejected"].str.len().to_numpy(np.float64)
    )
    learnt = np.full(len(table), np.nan)
    for fold in folds:
        learnt[fold.test] = _wins(np.sign(margin[fold.train].sum()) * margin[fold.test])
    tested = tested_rows(folds)
    return {("length", 100, "length"): learnt[tested], ("longer", 100, "length"): _wins(margin[tested])}


def _frame(
    split: Split,
    cells: dict[Cell, Floats],
    shuffles: list[Floats],
    clusters: NDArray[Any],
    statistics: Statistics,
) -> pd.DataFrame:
    full: Cell = ("full", 100, "full")
    rows = []
    for cell in [full, *(cell for cell in cells if cell != full)]:
        side, ratio, test = cell
        right = cells[cell]
        row = _row(split, cell, cluster_bootstrap_mean(right, clusters, statistics, bounds=(0.0, 1.0)))
        head: Cell = ("head", ratio, test)
        if cell != full:
            row |= _columns("difference_to_full", paired_difference(right, cells[full], clusters, statistics))
        if side in ("tail", "window") and head in cells:
            row |= _columns("difference_to_head", paired_difference(right, cells[head], clusters, statistics))
        rows.append(row)
    means = [float(right.mean()) for right in shuffles]
    control = mean_over_runs(means, len(clusters), len(set(clusters)), statistics, "shuffles")
    rows.append(_row(split, ("full", 100, "shuffled"), control))
    columns = ["split", "train_side", "ratio", "test", "accuracy", "low", "high", "n", "clusters"]
    differences = [f"difference_to_{what}{end}" for what in ("full", "head") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=columns + differences)


def _row(split: Split, cell: Cell, estimate: Estimate) -> dict[str, Any]:
    side, ratio, test = cell
    where = {"split": split, "train_side": side, "ratio": ratio, "test": test}
    return {**where, **_columns("accuracy", estimate), "n": estimate.n, "clusters": estimate.clusters}


def _columns(name: str, estimate: Estimate) -> dict[str, float]:
    prefix = "" if name == "accuracy" else f"{name}_"
    return {name: estimate.value, f"{prefix}low": estimate.low, f"{prefix}high": estimate.high}


def verdict(frame: pd.DataFrame, split: Split = "plain", margin: float = COMPARABLE) -> Place:
    """What `run_probe`'s table says about one split (`evaluation.place`), with the length baseline that is learnt.

    Head and tail are those at the ratio nearest to 50%, trained and tested on what was kept.
    """
    full, length = _cell(frame, split, "full", 100, "full"), _cell(frame, split, "length", 100, "length")
    tail = _tail(frame, split)
    return place_of(
        (full.low, full.high),
        (length.low, length.high),
        (length.difference_to_full_low, length.difference_to_full_high),
        None if tail is None else (-tail.difference_to_head_high, -tail.difference_to_head_low),
        margin,
    )


def summary(frame: pd.DataFrame, margin: float = COMPARABLE) -> dict[str, Any]:
    """The verdict of the plain split, and per split the numbers behind it; JSON-ready, intervals as [low, high]."""
    return {
        "verdict": verdict(frame, margin=margin),
        "margin": margin,
        "splits": {split: _numbers(frame, split, margin) for split in dict.fromkeys(frame["split"])},
    }


def _numbers(frame: pd.DataFrame, split: Split, margin: float) -> dict[str, Any]:
    full, length = _cell(frame, split, "full", 100, "full"), _cell(frame, split, "length", 100, "length")
    shuffled, tail = _cell(frame, split, "full", 100, "shuffled"), _tail(frame, split)
    found: dict[str, Any] = {
        "verdict": verdict(frame, split, margin),
        "pairs": int(full.n),
        "clusters": int(full.clusters),
    }
    for name, row in {"full": full, "length_only": length, "shuffled_labels": shuffled}.items():
        found[name] = _with_interval(row.accuracy, row.low, row.high)
    found["length_only_minus_full"] = _with_interval(
        length.difference_to_full, length.difference_to_full_low, length.difference_to_full_high
    )
    if tail is not None:
        found["ratio"] = int(tail.ratio)
        found["head_minus_tail_on_kept"] = _with_interval(
            -tail.difference_to_head, -tail.difference_to_head_high, -tail.difference_to_head_low
        )
    return found


def _with_interval(value: float, low: float, high: float) -> dict[str, Any]:
    """Numbers as JSON can hold them: an interval that could not be had is null."""
    interval = None if np.isnan(low) else [round(float(low), 4), round(float(high), 4)]
    return {"value": round(float(value), 4), "interval": interval}


def _cell(frame: pd.DataFrame, split: Split, side: str, ratio: int, test: str) -> Any:
    where = (frame["split"] == split) & (frame["train_side"] == side) & (frame["ratio"] == ratio)
    return next(frame[where & (frame["test"] == test)].itertuples())


def _tail(frame: pd.DataFrame, split: Split) -> Any | None:
    """The tail's row, tested on what was kept, at the ratio nearest to 50% that has a head to compare with."""
    rows = frame[(frame["split"] == split) & (frame["train_side"] == "tail") & (frame["test"] == "kept")]
    rows = rows.dropna(subset="difference_to_head")
    return next(rows.iloc[(rows["ratio"] - 50).abs().argsort(kind="stable")].itertuples(), None)
