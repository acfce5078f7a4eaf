"""The results page of a run: its tables and figures, a reading of each, and where they come from.

The page is a function of a folder alone: `run.json`, `tables/*.csv` and `.md`, `figures/*.csv` and `.png`, `probe/`. So
a published copy can be checked against the data that was published with it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from shallow_signals.files import InputError, write_text
from shallow_signals.paper import readings

Reading = Callable[[pd.DataFrame], Iterator[str]]

# What a page shows, in order: name, heading and reading. What the run has not made is left out.
TABLES: tuple[tuple[str, str, Reading], ...] = (
    ("verdicts", "Early, everywhere, or length?", readings.verdicts),
    ("table1", "Table 1: reward models on the benchmark", readings.benchmark),
    ("table2", "Table 2: reward models by aspect", readings.heldout),
    ("table3", "Table 3: win rates of DPO policies", readings.win_rates),
    ("table4", "Table 4: reward models of text that people wrote", readings.benchmark),
    ("dominance", "Length control and KL threshold against mixing", readings.dominance),
    ("controls", "Reward models and their controls on held-out pairs", readings.controls),
)
FIGURES: tuple[tuple[str, str, Reading], ...] = (
    ("figure1", "Figure 1: two pairs, chosen by rule", readings.examples),
    ("figure2", "Figure 2: implicit rewards by the part of a response that is read", readings.implicit),
    ("figure3", "Figure 3: KL between policy and reference by position", readings.kl),
    ("figure4", "Figure 4: reward against KL", readings.tradeoff),
    ("figure5", "Figure 5: the same on other text", readings.implicit),
    ("position", "The signal by position", readings.position),
    ("reward_by_cut", "Reward models read at every cut", readings.reward_by_cut),
)


def write_page(folder: Path) -> None:
    """Write `README.md` into a results folder; raises `InputError` where the folder holds no run."""
    write_text(folder / "README.md", render_page(folder))


def render_page(folder: Path) -> str:
    """The page of what stands in `folder`."""
    try:
        facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{folder}: no run.json; make it with the target `page`") from error
    parts = [*_opening(facts), *_tables(folder), *_figures(folder), *_probes(folder, facts), *_provenance(facts)]
    return "\n\n".join(parts) + "\n"


def publish(results: Path, docs: Path) -> list[Path]:
    """Copy the page with all that it is made of from `results` to `docs`, which is emptied first; what was written.

    Raises `InputError` where the page in `results` is not the one that its data gives.
    """
    page = results / "README.md"
    if not page.is_file() or page.read_text(encoding="utf-8") != render_page(results):
        raise InputError(f"{page}: missing or older than its data; make it again with the target `page`")
    if docs.exists():
        shutil.rmtree(docs)
    names = ["README.md", "run.json"]
    for pattern in ("tables/*.csv", "tables/*.md", "figures/*.csv", "figures/*.png", "probe/*.csv", "probe/*.png"):
        names += [str(path.relative_to(results)) for path in sorted(results.glob(pattern))]
    for name in names:
        (docs / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(results / name, docs / name)
    return [docs / name for name in names]


def _opening(facts: dict[str, Any]) -> Iterator[str]:
    yield f"# {facts['params']['title']}"
    yield facts["params"]["summary"]
    yield (
        "Brackets are 95% intervals over clusters of pairs (prompts, debates) and, from three seeds on, over seeds. "
        "With fewer seeds a number speaks of this run, and a claim about trained models stays undecided. Every number "
        "stands in the CSV file of its table or figure."
    )


def _tables(folder: Path) -> Iterator[str]:
    for name, heading, reading in TABLES:
        table = folder / "tables" / f"{name}.csv"
        if table.is_file():
            yield f"## {heading}"
            yield from _read(table, reading)
            yield _unnumbered((folder / "tables" / f"{name}.md").read_text(encoding="utf-8").strip(), name)


def _figures(folder: Path) -> Iterator[str]:
    for name, heading, reading in FIGURES:
        table = folder / "figures" / f"{name}.csv"
        if table.is_file():
            yield f"## {heading}"
            yield f"![{heading}](figures/{name}.png)"
            yield from _read(table, reading)


def _probes(folder: Path, facts: dict[str, Any]) -> Iterator[str]:
    labels = facts["params"].get("probes", {})
    if labels:
        yield "## Probe: what a bag of words says"
    for name, label in labels.items():
        yield f"### {label}"
        yield f"![Probe of {label}](probe/{name}.png)"
        yield from _read(folder / "probe" / f"{name}.csv", readings.probe)


def _provenance(facts: dict[str, Any]) -> Iterator[str]:
    machine = facts["machine"]
    where = machine["accelerator"] or f"{machine['cores']} cores of {machine['processor']}"
    changed = " with uncommitted changes" if facts["dirty"] else ""
    yield "## Where this comes from"
    yield (
        f"Run `{facts['run']}` of commit `{(facts['commit'] or 'unknown')[:12]}`{changed}, on {where}. Python "
        f"{facts['python']}; " + ", ".join(f"{name} {version}" for name, version in facts["versions"].items()) + "."
    )
    rows = [
        f"| {rule} | {found['jobs']} | {found['seconds']:,.0f} | {found['peak_mb']:,.0f} |"
        for rule, found in facts["rules"].items()
    ]
    yield "\n".join(["| rule | jobs | seconds, summed | peak memory of a job, MB |", "|---|---|---|---|", *rows])


def _read(table: Path, reading: Reading) -> Iterator[str]:
    try:
        yield from reading(pd.read_csv(table))
    except (KeyError, IndexError, FileNotFoundError) as error:
        raise InputError(f"{table}: lacks what its reading needs ({error}); make it again") from error


def _unnumbered(table: str, name: str) -> str:
    """A table's Markdown whose footnotes don't collide with those of the page's other tables."""
    return table.replace("[^", f"[^{name}-")
