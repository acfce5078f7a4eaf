"""Tables as CSV (one line a cell), Markdown and LaTeX (booktabs)."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from shallow_signals.evaluation.statistics import Estimate
from shallow_signals.files import write_text
from shallow_signals.paper.layout import Cell, Row, Table, scope

DASH = "—"
_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    DASH: "---",
    "–": "--",
}
_TEX_HEAD = r"""% needs: \usepackage{booktabs} \usepackage{graphicx} \usepackage[table]{xcolor}
\definecolor{bestblue}{HTML}{9DC3E6}
\definecolor{secondblue}{HTML}{DEEBF7}
"""
CSV_COLUMNS = (
    *("table", "group", "row", "column", "name", "tested_on"),
    *("value", "low", "high", "n", "clusters", "method", "seeds", "by_seed"),
    *("difference", "difference_low", "difference_high", "difference_method", "verdict"),
    *("mark", "ties", "left_out", "scope", "note"),
)


def write_table(table: Table, stem: Path) -> list[Path]:
    """Write `{stem}.csv`, `{stem}.md` and `{stem}.tex`; return their paths."""
    forms: dict[str, Callable[[Table], str]] = {".csv": to_csv, ".md": to_markdown, ".tex": to_latex}
    paths = []
    for suffix, form in forms.items():
        paths.append(stem.with_name(stem.name + suffix))
        write_text(paths[-1], form(table))
    return paths


def to_csv(table: Table) -> str:
    """Long form: one line a cell, missing cells included (their reason in `note`)."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in table.rows:
        for (name, label), cell in zip(table.columns, row.cells, strict=True):
            found = cell.estimate
            writer.writerow(
                {
                    "table": table.name,
                    "group": row.group,
                    "row": row.label,
                    "column": label,
                    "name": name,
                    "tested_on": row.test,
                    **_interval("value", "low", "high", found),
                    "n": found.n if found else "",
                    "clusters": found.clusters if found else "",
                    "method": found.method if found else "",
                    "seeds": " ".join(map(str, cell.seeds)),
                    "by_seed": " ".join(f"{value:.6f}" for value in cell.by_seed),
                    **_interval("difference", "difference_low", "difference_high", cell.difference),
                    "difference_method": cell.difference.method if cell.difference else "",
                    "verdict": cell.verdict or "",
                    "mark": cell.mark,
                    "ties": cell.ties if found else "",
                    "left_out": cell.left_out if cell.difference else "",
                    "scope": scope(cell),
                    "note": "; ".join(filter(None, (cell.text, cell.note, row.note if cell.note != row.note else ""))),
                }
            )
    return text.getvalue()


def _interval(value: str, low: str, high: str, estimate: Estimate | None) -> dict[str, str]:
    numbers = (estimate.value, estimate.low, estimate.high) if estimate else (math.nan,) * 3
    return {key: "" if math.isnan(x) else f"{x:.6f}" for key, x in zip((value, low, high), numbers, strict=True)}


def to_markdown(table: Table) -> str:
    """The scores, then the differences to full where there are any, then the notes."""
    notes = _Footnotes(table)
    lines = [f"**{_title(table)}.** {table.caption}", "", *_markdown_block(table, notes, _markdown_score), ""]
    if _has_marks(table):
        lines += ["- **Bold**: best of its row; _italic_: second best."]
    lines += [f"- {note}" for note in [*table.notes, *notes.common]]
    if differences := _differences(table):
        same = f"on the same {table.unit.lower()}"
        lines += ["", f"Differences to the model trained on full responses, {same} (comparable?):", ""]
        lines += _markdown_block(differences, notes, _markdown_difference)
    lines += ["", *(f"[^{number}]: {text}" for text, number in notes.numbers.items())]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_block(table: Table, notes: _Footnotes, text: Callable[[Cell, int], str]) -> Iterator[str]:
    heads = [*table.stub, f"{table.unit} (clusters)", *(label for _, label in table.columns)]
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    for row in table.rows:
        stub = [row.group, row.label + _marks(notes.of_row(row), "[^{}]"), _sizes(row)]
        cells = [text(cell, table.digits) + _marks(notes.of_cell(row, cell), "[^{}]") for cell in row.cells]
        yield "| " + " | ".join(part.replace("|", "\\|") for part in [*stub, *cells]) + " |"


def to_latex(table: Table) -> str:
    """A booktabs table of scores, and one of differences to full where there are any; needs xcolor and graphicx."""
    notes = _Footnotes(table)
    lines = [_TEX_HEAD + r"\begin{table}", r"\centering", *_latex_block(table, notes, _latex_score)]
    text = [table.caption, *table.notes, *notes.common]
    if _has_marks(table):
        text.append("Darker blue: best of its row; lighter blue: second best.")
    if differences := _differences(table):
        lines += ["", r"\medskip", "", *_latex_block(differences, notes, _latex_difference)]
        same = f"on the same {table.unit.lower()}"
        text.append(f"Below: differences to the model trained on full responses, {same}.")
    numbered = [f"$^{{{number}}}$ {escape(note)}." for note, number in notes.numbers.items()]
    lines += [
        r"\caption{" + " ".join([*map(escape, text), *numbered]) + "}",
        r"\label{tab:" + table.name + "}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex_block(table: Table, notes: _Footnotes, text: Callable[[Cell, int], str]) -> Iterator[str]:
    heads = [*table.stub, f"{table.unit} (clusters)", *(label for _, label in table.columns)]
    yield r"\resizebox{\textwidth}{!}{%"
    yield r"\begin{tabular}{ll" + "r" * (len(heads) - 2) + "}"
    yield r"\toprule"
    yield " & ".join(escape(head) for head in heads) + r" \\"
    group = None
    for row in table.rows:
        if row.group != group:
            yield r"\midrule"
        stub = [
            escape(row.group if row.group != group else ""),
            escape(row.label) + _marks(notes.of_row(row), "$^{{{}}}$"),
            escape(_sizes(row)),
        ]
        group = row.group
        cells = [text(cell, table.digits) + _marks(notes.of_cell(row, cell), "$^{{{}}}$") for cell in row.cells]
        yield " & ".join([*stub, *cells]) + r" \\"
    yield r"\bottomrule"
    yield r"\end{tabular}}"


def escape(text: str) -> str:
    """Plain text as LaTeX source."""
    return "".join(_TEX.get(letter, letter) for letter in text)


class _Footnotes:
    """Numbers for the notes of cells and rows; what holds for all models is said once, without a number."""

    def __init__(self, table: Table) -> None:
        self.numbers: dict[str, int] = {}
        scopes = {scope(cell) for row in table.rows for cell in row.cells if cell.estimate and cell.seeds}
        self._everywhere = scopes.pop() if len(scopes) == 1 else ""
        self.common = [f"All cells: {self._everywhere}."] if self._everywhere else []

    def of_cell(self, row: Row, cell: Cell) -> list[int]:
        """A partial line's note stands at its row."""
        said = bool(cell.estimate) and (cell.note == row.note or cell.note in row.label)
        notes = ["" if said else cell.note, scope(cell)]
        return [self._number(note) for note in notes if note and note != self._everywhere]

    def of_row(self, row: Row) -> list[int]:
        return [self._number(row.note)] if row.note else []

    def _number(self, note: str) -> int:
        return self.numbers.setdefault(note, len(self.numbers) + 1)


def _title(table: Table) -> str:
    """`table1` as "Table 1"."""
    return re.sub(r"(?<=[a-z])(?=[0-9])", " ", table.name).capitalize()


def _has_marks(table: Table) -> bool:
    return any(cell.mark for row in table.rows for cell in row.cells)


def _differences(table: Table) -> Table | None:
    """The rows and columns of the table that hold a difference to full; None if none does."""
    columns = [k for k in range(len(table.columns)) if any(row.cells[k].difference for row in table.rows)]
    rows = [replace(row, cells=tuple(row.cells[k] for k in columns)) for row in table.rows]
    rows = [row for row in rows if any(cell.difference for cell in row.cells)]
    return replace(table, columns=tuple(table.columns[k] for k in columns), rows=tuple(rows)) if rows else None


def _marks(numbers: list[int], form: str) -> str:
    return "".join(form.format(number) for number in numbers)


def _sizes(row: Row) -> str:
    """Pairs and clusters behind a row's cells; a range where cells differ."""
    found = [cell.estimate for cell in row.cells if cell.estimate and cell.estimate.n]
    if not found:
        return DASH
    return f"{_range([e.n for e in found])} ({_range([e.clusters for e in found])})"


def _range(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def _bounds(estimate: Estimate, digits: int, sign: str = "") -> str:
    """The interval, with one digit less than the number."""
    if math.isnan(estimate.low):
        return ""
    return f"[{estimate.low:{sign}.{digits - 1}f}, {estimate.high:{sign}.{digits - 1}f}]"


def _spread(cell: Cell) -> tuple[int, float] | None:
    """Number of runs and the standard deviation of their scores, where there are several."""
    runs = len(cell.by_seed)
    if runs < 2:
        return None
    mean = math.fsum(cell.by_seed) / runs
    return runs, math.sqrt(math.fsum((value - mean) ** 2 for value in cell.by_seed) / (runs - 1))


def _markdown_score(cell: Cell, digits: int) -> str:
    if cell.estimate is None:
        return cell.text or DASH
    number = f"{cell.estimate.value:.{digits}f}"
    number = {"best": f"**{number}**", "second": f"_{number}_"}.get(cell.mark, number)
    runs = _spread(cell)
    spread = f"(sd {runs[1]:.{digits - 1}f} of {runs[0]})" if runs else ""
    return " ".join(filter(None, [number, _bounds(cell.estimate, digits), spread]))


def _markdown_difference(cell: Cell, digits: int) -> str:
    if cell.difference is None:
        return DASH
    verdict = f" {cell.verdict}" if cell.verdict else ""
    return f"{cell.difference.value:+.{digits}f} {_bounds(cell.difference, digits, '+')}{verdict}"


def _latex_score(cell: Cell, digits: int) -> str:
    if cell.estimate is None:
        return escape(cell.text or DASH)
    number = f"{cell.estimate.value:.{digits}f}"
    colour = {"best": r"\cellcolor{bestblue}", "second": r"\cellcolor{secondblue}"}.get(cell.mark, "")
    number = rf"\textbf{{{number}}}" if cell.mark == "best" else number
    runs = _spread(cell)
    small = [_math(_bounds(cell.estimate, digits)), rf"$\pm${runs[1]:.{digits - 1}f} ({runs[0]})" if runs else ""]
    return colour + " ".join([number, *(rf"{{\scriptsize {part}}}" for part in small if part)])


def _latex_difference(cell: Cell, digits: int) -> str:
    if cell.difference is None:
        return escape(DASH)
    verdict = rf" {{\scriptsize {cell.verdict}}}" if cell.verdict else ""
    number = f"{cell.difference.value:+.{digits}f}"
    return rf"${number}$ {{\scriptsize {_math(_bounds(cell.difference, digits, '+'))}}}{verdict}"


def _math(text: str) -> str:
    """Numbers in mathematics, so that a minus is a minus."""
    return f"${text}$" if text else ""
