"""Three instruments side by side: does the probe, the reward model, the implicit reward find the signal early?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from shallow_signals.config.statistics import Statistics
from shallow_signals.evaluation.accuracy import Outcomes, accuracy, compare, length_baseline
from shallow_signals.evaluation.place import Place, place_of
from shallow_signals.evaluation.statistics import MIN_SEEDS, Estimate, paired_difference
from shallow_signals.files import InputError
from shallow_signals.paper.layout import Cell, Row, Table
from shallow_signals.paper.score_files import ScoreFiles

COLUMNS = (
    ("whole", "whole responses"),
    ("longer", "longer one wins"),
    ("longer-whole", "longer minus whole"),
    ("head-tail", "head 50% minus tail 50%"),
    ("head-window", "head 50% minus window 50%"),
    ("min_length-whole", "shorter's length minus whole"),
)
PERCENT = 50


def verdicts(evidence: Sequence[Mapping[str, Any]], settings: Statistics) -> Table:
    """A row for each data set and instrument: paired differences, and the place of the signal that they speak for.

    `evidence` holds a `label` and what there is of `probe` (path of its table), `rewards` (truncation -> seed -> path
    of held-out scores) and `implicit` (path of its table). Accuracies are tested on whole responses; head, tail and
    window are each trained (implicit rewards: read) and tested on what they keep. An instrument that trains a model
    says nothing but "undecided" with fewer than three seeds; its row then names what this run alone would say.
    """
    rows: list[Row] = []
    for item in evidence:
        if item.get("probe"):
            rows.append(_row(item["label"], "probe", _probe(Path(item["probe"])), (), settings))
        if item.get("rewards"):
            cells, seeds = _rewards(item["rewards"], settings)
            rows.append(_row(item["label"], "reward model", cells, seeds, settings))
        if item.get("implicit"):
            cells, count = _implicit(Path(item["implicit"]))
            rows.append(_row(item["label"], "implicit reward", cells, tuple(range(1, count + 1)), settings))
    notes = [
        f"Brackets: {settings.confidence:.0%} interval; differences are paired, on the same pairs.",
        "Head, tail and window keep half of each response's tokens (the probe: of its words), at equal size.",
        f'"length": the longer one wins as often as the model is right, but for {settings.comparable_margin:g}.',
        f'"everywhere": head and tail differ by less than {settings.comparable_margin:g}, interval and all.',
        f'Trained models: "undecided" with fewer than {MIN_SEEDS} seeds; what this run would say stands in brackets.',
    ]
    caption = "Where the preference signal sits, by three instruments."
    return Table("verdicts", caption, ("Dataset", "Instrument: verdict"), COLUMNS, tuple(rows), tuple(notes))


def _row(label: str, instrument: str, cells: dict[str, Estimate], seeds: tuple[int, ...], settings: Statistics) -> Row:
    place = _place(cells, settings.comparable_margin)
    trained = instrument != "probe"
    said: str = place
    if trained and len(seeds) < MIN_SEEDS and place != "undecided":
        said = f"undecided (this run: {place})"
    shown = tuple(
        Cell(cells[name], seeds=seeds if trained else ()) if name in cells else Cell(note="not measured")
        for name, _ in COLUMNS
    )
    return Row(label, f"{instrument}: {said}", shown)


def _place(cells: Mapping[str, Estimate], margin: float) -> Place:
    def bounds(name: str) -> tuple[float, float]:
        return (cells[name].low, cells[name].high) if name in cells else (math.nan, math.nan)

    between = bounds("head-tail") if "head-tail" in cells else None
    return place_of(bounds("whole"), bounds("longer"), bounds("longer-whole"), between, margin)


def _probe(table: Path) -> dict[str, Estimate]:
    frame = pd.read_csv(table)
    frame = frame[frame["split"] == "plain"]

    def row(side: str, ratio: int, test: str) -> Any | None:
        where = (frame["train_side"] == side) & (frame["ratio"] == ratio) & (frame["test"] == test)
        return next(frame[where].itertuples(), None)

    whole, length = row("full", 100, "full"), row("length", 100, "length")
    if whole is None or length is None:
        raise InputError(f"{table}: no row of the whole responses or of length; run the probe again")

    def estimate(found: Any, prefix: str = "", sign: int = 1) -> Estimate:
        value = getattr(found, prefix.rstrip("_") or "accuracy")
        ends = sorted(sign * getattr(found, f"{prefix}{end}") for end in ("low", "high"))
        return Estimate(sign * value, ends[0], ends[1], int(found.n), int(found.clusters), "the probe's")

    cells = {
        "whole": estimate(whole),
        "longer": estimate(length),
        "longer-whole": estimate(length, "difference_to_full_"),
    }
    for side in ("tail", "window"):
        if (found := row(side, PERCENT, "kept")) is not None:
            cells[f"head-{side}"] = estimate(found, "difference_to_head_", -1)
    return cells


def _rewards(
    scores: Mapping[str, Mapping[Any, str]], settings: Statistics
) -> tuple[dict[str, Estimate], tuple[int, ...]]:
    """Cells of a reward-model experiment, and the seeds of its models of full responses."""
    paths = {("", t, int(seed)): Path(path) for t, runs in scores.items() for seed, path in runs.items()}
    files = ScoreFiles(paths)
    names = files.truncations("")

    def outcomes(truncation: str, test: str) -> Outcomes | None:
        return files.outcomes("", truncation, test) if truncation in names else None

    whole = outcomes("full", "full")
    if whole is None:
        raise InputError("verdicts: no held-out scores of a model trained on full responses; add `full` to truncations")
    longer = whole.longer[None].repeat(len(whole.seeds), 0)
    cells = {
        "whole": accuracy(whole, settings),
        "longer": length_baseline(whole, settings),
        "longer-whole": paired_difference(longer, whole.correct, whole.clusters, settings),
    }
    for name, first, second in _pairs_of_models():
        a, b = outcomes(*first), outcomes(*second)
        if a is not None and b is not None:
            cells[name] = compare(a, b, settings).difference
    return cells, whole.seeds


def _pairs_of_models() -> Iterator[tuple[str, tuple[str, str], tuple[str, str]]]:
    head = (f"head{PERCENT}", "kept")
    yield "head-tail", head, (f"tail{PERCENT}", "kept")
    yield "head-window", head, (f"window{PERCENT}", "kept")
    yield "min_length-whole", ("min_length", "kept"), ("full", "full")


def _implicit(table: Path) -> tuple[dict[str, Estimate], int]:
    """Cells of one policy, trained on full responses and read at parts of them, and the number of its seeds."""
    frame = pd.read_csv(table)
    frame = frame[frame["axis"] == "ratio"]

    def row(curve: str, x: int) -> Any | None:
        return next(frame[(frame["curve"] == curve) & (frame["x"] == x)].itertuples(), None)

    def to_head(found: Any, sign: int) -> Estimate:
        ends = sorted((sign * found.to_head_low, sign * found.to_head_high))
        return Estimate(sign * found.to_head, ends[0], ends[1], int(found.n), int(found.clusters), "", int(found.seeds))

    whole, longer = row("head", 100), row("longer", 100)
    if whole is None or longer is None:
        raise InputError(f"{table}: no row of whole responses or of length; gather it again with ratio 100")
    facts = [Estimate(r.accuracy, r.low, r.high, int(r.n), int(r.clusters), "", int(r.seeds)) for r in (whole, longer)]
    cells = {"whole": facts[0], "longer": facts[1], "longer-whole": to_head(longer, 1)}
    for side in ("tail", "window"):
        if (found := row(side, PERCENT)) is not None:
            cells[f"head-{side}"] = to_head(found, -1)
    if (found := row("min_length", 100)) is not None:
        cells["min_length-whole"] = to_head(found, 1)
    return cells, int(whole.seeds)
