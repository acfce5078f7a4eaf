"""The paper's tables of reward models, and the table of controls, as arithmetic on score files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from shallow_signals.config.statistics import Statistics
from shallow_signals.config.truncation import parse
from shallow_signals.evaluation.accuracy import (
    Comparison,
    Outcomes,
    accuracy,
    by_seed,
    compare,
    join,
    length_baseline,
    on_same_pairs,
)
from shallow_signals.evaluation.rewardbench import Line, Rule, score
from shallow_signals.evaluation.statistics import (
    DEFAULTS,
    UNIT,
    Estimate,
    cluster_bootstrap_mean,
    comparable,
    mean_over_runs,
)
from shallow_signals.paper.layout import Cell, Row, Table, computed, in_order, label_of, marked
from shallow_signals.paper.score_files import ScoreFiles, Scores

NOT_RUN = "not part of this experiment's runs"
NOT_TESTED = {"full": "no score on full responses", "kept": "no score on what was kept"}


def table1(scores: Scores, labels: Mapping[str, str], rules: Sequence[Rule], settings: Statistics = DEFAULTS) -> Table:
    """Table 1: sections and total of a benchmark by the training data's truncation; rows in the order of `labels`.

    `labels` maps experiments to what is printed as their data set; `rules` are the benchmark's (`load_rules`).
    """
    caption = "Benchmark accuracy of reward models trained on truncated responses, tested on full ones."
    return _benchmark_table("table1", caption, scores, labels, rules, settings)


def table4(scores: Scores, labels: Mapping[str, str], rules: Sequence[Rule], settings: Statistics = DEFAULTS) -> Table:
    """Table 4: as Table 1, for responses that people wrote."""
    caption = "Benchmark accuracy of reward models trained on truncated responses by people, tested on full ones."
    return _benchmark_table("table4", caption, scores, labels, rules, settings)


def table2(scores: Scores, labels: Mapping[str, str], settings: Statistics = DEFAULTS) -> Table:
    """Table 2: held-out accuracy per aspect, tested on full responses and on what was kept, and their averages.

    `labels` maps experiments to aspects. The average is the plain mean over aspects; a prompt that several aspects
    judge stays one cluster in its interval.
    """
    files = ScoreFiles(scores)
    columns = _columns(files, labels)
    rows: list[Row] = []
    for experiment, label in labels.items():
        rows += [_heldout_row(files, experiment, label, columns, test, settings) for test in ("full", "kept")]
    rows += [_average_row(files, labels, columns, test, settings) for test in ("full", "kept")]
    caption = "Held-out accuracy of reward models per aspect, tested on full responses and on what training kept."
    return Table("table2", caption, ("Task", "Tested on"), _heads(columns), tuple(rows), _notes(rows, settings))


def controls(
    scores: Scores,
    labels: Mapping[str, str],
    settings: Statistics = DEFAULTS,
    best: Mapping[tuple[str, str, str], float] | None = None,
) -> Table:
    """Held-out accuracy by truncation with what it must be read against.

    A row is one experiment at one truncation; beside the accuracies stand the differences to the head of equal size
    (is the signal early, or everywhere?), the length-only baseline and, where `best` maps (experiment, truncation,
    test) to it, the best accuracy that the world allows. Shuffled labels are one row: the mean over shuffles.
    """
    heads = [
        ("full", "tested on full"),
        ("kept", "tested on kept"),
        ("full-head", "minus head of equal size, full"),
        ("kept-head", "minus head of equal size, kept"),
        ("longer", "longer one wins (kept)"),
    ]
    if best:
        heads += [("best-full", "best possible, full"), ("best-kept", "best possible, kept")]
    files = ScoreFiles(scores)
    rows: list[Row] = []
    for experiment, label in labels.items():
        names = files.truncations(experiment)
        plain = [name for name in names if parse(name).kind != "shuffled"]
        shuffled = [name for name in names if parse(name).kind == "shuffled"]
        rows += [_control_row(files, experiment, label, name, settings, best or {}) for name in plain]
        if shuffled:
            rows.append(_shuffled_row(files, experiment, label, shuffled, len(heads), settings))
    caption = "Held-out accuracy of reward models and of their controls."
    return Table("controls", caption, ("Dataset", "Trained on"), tuple(heads), tuple(rows), _notes(rows, settings))


def _benchmark_table(
    name: str, caption: str, scores: Scores, labels: Mapping[str, str], rules: Sequence[Rule], settings: Statistics
) -> Table:
    files = ScoreFiles(scores)
    columns = _columns(files, labels)
    rows: list[Row] = []
    for experiment, label in labels.items():
        full = files.outcomes(experiment, "full", "full")
        lines: dict[str, list[Line]] = {}
        found: dict[str, Outcomes] = {}
        for column in columns:
            if (part := files.outcomes(experiment, column, "full")) is not None:
                found[column] = part
                lines[column] = score(part, rules, settings, full if column != "full" else None)
        rows += _benchmark_rows(label, columns, lines, found, settings)
    return Table(name, caption, ("Dataset", "Dimension"), _heads(columns), tuple(rows), _notes(rows, settings))


def _benchmark_rows(
    label: str, columns: list[str], lines: dict[str, list[Line]], found: dict[str, Outcomes], settings: Statistics
) -> Iterable[Row]:
    """A row per section, the total, and a row for each subset that the rules don't name."""
    shown = [(line.kind, line.name) for part in lines.values() for line in part if line.kind != "subset"]
    order = {"section": 0, "total": 1, "extra": 2}
    for kind, name in sorted(dict.fromkeys(shown), key=lambda head: order[head[0]]):  # stable: sections as in the rules
        held = {c: next((x for x in part if (x.kind, x.name) == (kind, name)), None) for c, part in lines.items()}
        notes = {line.note for line in held.values() if line is not None}
        note = next(iter(notes)) if len(notes) == 1 else ""
        cells = [_line_cell(held.get(column), found.get(column), settings) for column in columns]
        if kind == "total" and note:
            title = f"{name}, {note}"
        elif kind == "extra":
            title = f"{name} (not in the total)"
        else:
            title = f"{name} (partial)" if note.startswith("partial") else name
        yield Row(label, title, marked(cells), note=note if kind == "section" else "")


def _line_cell(line: Line | None, found: Outcomes | None, settings: Statistics) -> Cell:
    if line is None or found is None:
        return Cell(note=NOT_RUN)
    if line.estimate is None:
        return Cell(note=line.note)
    return Cell(
        estimate=line.estimate,
        difference=line.difference,
        verdict=None if line.difference is None else comparable(line.difference, settings.comparable_margin),
        seeds=found.seeds,
        by_seed=line.by_seed,
        ties=line.ties,
        note=line.note,
    )


def _heldout_row(
    files: ScoreFiles, experiment: str, label: str, columns: list[str], test: str, settings: Statistics
) -> Row:
    full = files.outcomes(experiment, "full", "full")
    known = files.truncations(experiment)
    cells = []
    for column in columns:
        found = files.outcomes(experiment, column, test)
        if found is None:
            cells.append(Cell(note=NOT_TESTED[test] if column in known else NOT_RUN))
        else:
            cells.append(_accuracy_cell(found, full if column != "full" else None, settings))
    return Row(label, test, marked(cells), test=test)


def _accuracy_cell(found: Outcomes, full: Outcomes | None, settings: Statistics) -> Cell:
    """Accuracy, and its difference to that of the model trained on full responses tested on full ones."""
    against = None if full is None else compare(found, full, settings)
    return _cell(found, accuracy(found, settings), by_seed(found), against, settings)


def _cell(
    found: Outcomes, estimate: Estimate, runs: tuple[float, ...], against: Comparison | None, settings: Statistics
) -> Cell:
    return Cell(
        estimate=estimate,
        difference=against.difference if against else None,
        verdict=comparable(against.difference, settings.comparable_margin) if against else None,
        seeds=found.seeds,
        by_seed=runs,
        ties=int(found.ties.sum()),
        left_out=against.left_out if against else 0,
    )


def _average_row(
    files: ScoreFiles, labels: Mapping[str, str], columns: list[str], test: str, settings: Statistics
) -> Row:
    full = _joined(files, labels, "full", "full")
    cells = []
    for column in columns:
        found = _joined(files, labels, column, test)
        if isinstance(found, str):
            cells.append(Cell(note=found))
        else:
            against = full if column != "full" and isinstance(full, Outcomes) else None
            cells.append(_average_cell(found, against, settings))
    return Row("Average", test, marked(cells), test=test)


def _joined(files: ScoreFiles, labels: Mapping[str, str], truncation: str, test: str) -> Outcomes | str:
    parts = {experiment: files.outcomes(experiment, truncation, test) for experiment in labels}
    absent = [labels[experiment] for experiment, part in parts.items() if part is None]
    if absent:
        return f"no average without {', '.join(absent)}"
    return join({experiment: part for experiment, part in parts.items() if part is not None})


def _average_cell(found: Outcomes, full: Outcomes | None, settings: Statistics) -> Cell:
    equal = dict.fromkeys(found.subsets.tolist(), 1.0)
    estimate = cluster_bootstrap_mean(
        found.correct, found.clusters, settings, strata=found.subsets, weights=equal, bounds=UNIT
    )
    against = None
    if full is not None:
        shared, _, _ = on_same_pairs(found, full)
        against = compare(found, full, settings, strata=shared.subsets, weights=equal)
    runs = np.array([found.correct[:, found.subsets == aspect].mean(axis=1) for aspect in equal]).mean(axis=0)
    return _cell(found, estimate, tuple(runs.tolist()), against, settings)


def _control_row(
    files: ScoreFiles,
    experiment: str,
    label: str,
    truncation: str,
    settings: Statistics,
    best: Mapping[tuple[str, str, str], float],
) -> Row:
    full = files.outcomes(experiment, "full", "full") if truncation != "full" else None
    head = _head_of_equal_size(truncation)
    cells, differences, bounds = [], [], []
    longer = Cell(note=NOT_TESTED["kept"])
    for test in ("full", "kept"):
        found = files.outcomes(experiment, truncation, test)
        cells.append(Cell(note=NOT_TESTED[test]) if found is None else _accuracy_cell(found, full, settings))
        other = files.outcomes(experiment, head, test) if head else None
        if found is None or other is None:
            differences.append(Cell(note="no head of equal size" if other is None else NOT_TESTED[test]))
        else:
            against = compare(found, other, settings)
            differences.append(Cell(against.difference, seeds=found.seeds, left_out=against.left_out))
        if found is not None and test == "kept":
            longer = Cell(length_baseline(found, settings))
        bound = best.get((experiment, truncation, test))
        bounds.append(Cell(note="not known for this data") if bound is None else computed(bound))
    return Row(label, label_of(truncation), (*cells, *differences, longer, *(bounds if best else ())))


def _shuffled_row(
    files: ScoreFiles, experiment: str, label: str, names: list[str], width: int, settings: Statistics
) -> Row:
    """Mean over shuffles, tested on true labels; the interval is over shuffles (several seeds of one are averaged)."""
    parts = [part for name in names if (part := files.outcomes(experiment, name, "full")) is not None]
    rest = tuple(Cell(note="no such comparison for shuffled labels") for _ in range(width - 1))
    if not parts:
        return Row(label, "shuffled labels", (Cell(note=NOT_TESTED["full"]), *rest))
    means = [sum(by_seed(part)) / len(part.seeds) for part in parts]
    estimate = mean_over_runs(means, parts[0].n, int(np.unique(parts[0].clusters).size), settings, "shuffles")
    ties = sum(int(part.ties.sum()) for part in parts)
    note = "no interval: it would be over shuffles, of which this run has one" if len(parts) == 1 else ""
    cell = Cell(estimate, seeds=parts[0].seeds, by_seed=tuple(means), ties=ties, note=note)
    many = f"mean of {len(parts)}" if len(parts) > 1 else "one shuffle"
    return Row(label, f"shuffled labels ({many})", (cell, *rest))


def _head_of_equal_size(truncation: str) -> str | None:
    """The head that keeps as many tokens as a tail, a window or a smaller set of pairs; None for the rest."""
    for control in ("tail", "window", "pairs"):
        if truncation.startswith(control):
            return "head" + truncation.removeprefix(control)
    return None


def _columns(files: ScoreFiles, labels: Iterable[str]) -> list[str]:
    names = in_order(name for experiment in labels for name in files.truncations(experiment))
    return [name for name in names if parse(name).kind != "shuffled"]


def _heads(columns: list[str]) -> tuple[tuple[str, str], ...]:
    return tuple((name, label_of(name)) for name in columns)


def _notes(rows: list[Row], settings: Statistics) -> tuple[str, ...]:
    cells = [cell for row in rows for cell in row.cells]
    notes = [
        f"Brackets: {settings.confidence:.0%} interval over clusters and, from three seeds on, over seeds.",
    ]
    if any(len(cell.by_seed) > 1 for cell in cells):
        notes.append("After them the standard deviation over seeds, and their number.")
    if any(cell.verdict for cell in cells):
        notes.append(f"Comparable: the interval of the difference lies above -{settings.comparable_margin:g}.")
    if any(cell.ties for cell in cells):
        notes.append("Equal scores count as wrong; their number stands in the CSV file.")
    if any(cell.left_out for cell in cells):
        notes.append("Differences leave out pairs that only one side scored; their number stands in the CSV file.")
    return tuple(notes)
