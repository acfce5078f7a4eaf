"""A run's plan as a table: by rule and in all, on A100 and H100, or at speeds measured on this machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from shallow_signals.files import InputError
from shallow_signals.planning.calibrate import Machine
from shallow_signals.planning.memory import GB
from shallow_signals.planning.planner import Planner
from shallow_signals.planning.work import Work


@dataclass(frozen=True)
class Card:
    """A GPU's published peaks: dense bfloat16 FLOPs and bytes of memory traffic, a second."""

    flops: float
    bandwidth: float


CARDS = {"A100": Card(312e12, 2.0e12), "H100": Card(989e12, 3.35e12)}
UTILISATION = 0.4  # of the peak FLOPs that a step or a pass is taken to reach
TRAFFIC = 0.5  # of the peak bandwidth that sampling is taken to reach


@dataclass
class Total:
    """Of one rule, or of all."""

    jobs: int = 0
    tokens: float = 0.0
    flops: float = 0.0
    hours: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CARDS, 0.0))  # GPU-hours
    gpus: int = 0
    memory: float = 0.0  # of the largest job, on each GPU
    disk: float = 0.0
    here: float | None = None  # hours at the speeds measured on this machine

    def add(self, work: Work, machine: Machine | None) -> None:
        """Count one output in."""
        self.tokens += work.tokens
        self.flops += work.flops
        self.disk += work.disk
        self.memory = max(self.memory, work.memory)
        self.gpus = max(self.gpus, work.gpus if work.flops else 0)
        for name, card in CARDS.items():
            self.hours[name] += gpu_hours(work, card)
        if machine is not None:
            speed = machine.training if work.trains else machine.scoring
            self.here = (self.here or 0.0) + work.flops / speed.flops / 3600


def gpu_hours(work: Work, card: Card) -> float:
    """Hours of one GPU; sampled tokens wait for the weights to be read, everything else for products."""
    seconds = work.flops / (UTILISATION * card.flops)
    if work.generated:
        seconds = max(seconds, work.generated * work.weights / (TRAFFIC * card.bandwidth))
    return seconds / 3600


def add_up(
    planner: Planner, jobs: Iterable[tuple[str, list[str]]], machine: Machine | None = None
) -> tuple[dict[str, Total], list[str]]:
    """Totals by rule, and a line for each output that can't be made; `jobs` are (rule, paths below the results)."""
    totals: dict[str, Total] = {}
    refused: list[str] = []
    for rule, outputs in jobs:
        total = totals.setdefault(rule, Total())
        total.jobs += 1
        before = total.flops
        for path in outputs:
            try:
                work = planner.of(path)
            except InputError as error:
                refused.append(str(error))
                continue
            total.add(work, machine)
            if work.problem is not None:
                refused.append(f"{path}: {work.problem}")
        if total.here is not None and machine is not None and total.flops > before:
            total.here += machine.start / machine.jobs / 3600  # a model's job, one of several side by side
    return totals, list(dict.fromkeys(refused))


def speeds(machine: Machine) -> str:
    """What was measured."""
    beside = f", {machine.jobs} jobs side by side together" if machine.jobs > 1 else ""
    start = f"; a job takes {machine.start:.0f} seconds to start" if machine.start else ""
    rates = f"training {machine.training.tokens:,.0f} tokens/s, scoring {machine.scoring.tokens:,.0f} tokens/s"
    return f"{rates}{beside}{start}"


def in_brief(totals: Mapping[str, Total], machine: Machine | None) -> str:
    """The sum in a line or two."""
    everything = _sum(totals)
    text = f"{everything.jobs} jobs, {everything.tokens:.3g} tokens, {everything.disk / GB:,.1f} GB of disk"
    if machine is None or everything.here is None:
        return text
    hours = everything.here
    time = f"{60 * hours:.0f} minutes" if hours < 1.5 else f"{hours:.1f} hours"
    return f"{text}: about {time} on this machine, sampling not reckoned in\n  measured here: {speeds(machine)}"


def as_table(totals: Mapping[str, Total]) -> str:
    """The plan to read; rules where no model is at work have their number of jobs only."""
    measured = any(total.here is not None for total in totals.values())
    head = ["rule", "jobs", "tokens", "FLOPs", *(f"{name} h" for name in CARDS), "GPUs", "GB/GPU", "disk GB"]
    rows = [[*head, "here h"] if measured else head]
    rows += [_line(name, total) for name, total in totals.items()]
    rows.append(_line("all", _sum(totals)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if not n else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _sum(totals: Mapping[str, Total]) -> Total:
    everything = Total()
    for total in totals.values():
        everything.jobs += total.jobs
        everything.tokens += total.tokens
        everything.flops += total.flops
        everything.disk += total.disk
        everything.gpus = max(everything.gpus, total.gpus)
        everything.memory = max(everything.memory, total.memory)
        for name in CARDS:
            everything.hours[name] += total.hours[name]
        if total.here is not None:
            everything.here = (everything.here or 0.0) + total.here
    return everything


def _line(name: str, total: Total) -> list[str]:
    disk = f"{total.disk / GB:,.1f}" if total.disk else ""
    here = [] if total.here is None else [_hours(total.here)]
    if not total.flops:
        return [name, str(total.jobs), "", "", *([""] * len(CARDS)), "", "", disk, *([""] * len(here))]
    hours = [_hours(value) for value in total.hours.values()]
    memory = f"{total.memory / GB:,.1f}"
    return [
        name,
        str(total.jobs),
        f"{total.tokens:.3g}",
        f"{total.flops:.3g}",
        *hours,
        str(total.gpus),
        memory,
        disk,
        *here,
    ]


def _hours(value: float) -> str:
    return f"{value:,.2f}" if value < 10 else f"{value:,.0f}"
