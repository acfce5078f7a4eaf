"""The order of training pairs: random between optimiser steps, sorted by length inside each.

All pairs of a step enter one gradient, so their order within it, and how many of them share a micro-batch, change
nothing but the padding. What goes together in a step is drawn at random, which pairs share a micro-batch is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from shallow_signals.files import InputError
from shallow_signals.models.tree import padded_width


class SortedSteps(Sampler[int]):
    """Indices of one epoch, to be cut into micro-batches in this order.

    An epoch is a permutation drawn from (`seed`, epoch), cut into steps of `global_batch` pairs; with `sort`, each step
    is ordered by falling length before it is cut into micro-batches (and dealt out to processes, micro-batch i going to
    process i modulo their number). A last short step is kept whole on one process. On several it is trimmed to full
    micro-batches for all of them: what that leaves out (other pairs in each epoch) is `dropped`; no pair is repeated.
    """

    def __init__(
        self,
        lengths: Sequence[int] | NDArray[np.int64],
        *,
        global_batch: int,
        micro_batch: int,
        processes: int = 1,
        seed: int,
        sort: bool = True,
    ) -> None:
        self.lengths = np.asarray(lengths)
        self.global_batch = global_batch
        self.sort = sort
        self.seed = seed
        self.epoch = 0
        rest = len(self.lengths) % global_batch
        self.dropped = rest % (micro_batch * processes) if processes > 1 else 0
        self.steps = -(-len(self) // global_batch)  # optimiser steps per epoch
        if not self.steps:
            raise InputError(f"{len(self.lengths)} training pairs make no step of micro-batches on {processes} GPUs")

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation that the next iteration follows."""
        self.epoch = epoch

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The indices of an epoch, int64 [len(self)]."""
        drawn = np.random.default_rng([self.seed, epoch]).permutation(len(self.lengths))[: len(self)]
        if not self.sort:
            return drawn
        step = np.arange(len(drawn)) // self.global_batch
        return drawn[np.lexsort((-self.lengths[drawn], step))]

    def __len__(self) -> int:
        return len(self.lengths) - self.dropped

    def __iter__(self) -> Iterator[int]:
        yield from self.order(self.epoch).tolist()


def accumulation_steps(global_batch: int, micro_batch: int, processes: int) -> int:
    """Micro-batches per process and optimiser step; `InputError` where the global batch can't be cut evenly."""
    together = micro_batch * processes
    if global_batch % together:
        raise InputError(
            f"recipe: global_batch {global_batch} is no multiple of micro_batch {micro_batch} x {processes} processes; "
            "change micro_batch (the gradient stays the same) or the number of processes"
        )
    return global_batch // together


def balanced(rows: Sequence[int], widths: Sequence[int], parts: int) -> list[int]:
    """Where to cut a sequence of pairs into `parts` micro-batches whose largest is as small as can be: their starts.

    `rows` and `widths` say how many rows each pair takes and how long the longest of them is; a micro-batch fills its
    rows times its longest width. One long pair then stands alone where many short ones stand together: no more memory
    than the longest pair needs, and no more micro-batches than `parts`, which is at most the number of pairs.
    """
    low = max(count * width for count, width in zip(rows, widths, strict=True))
    high = sum(rows) * max(widths)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_filled(rows, widths, middle)) <= parts else (middle + 1, high)
    starts = _filled(rows, widths, low)
    while len(starts) < parts:  # trainers count micro-batches: halve the longest of them
        ends = [*starts[1:], len(rows)]
        start, end = max(zip(starts, ends, strict=True), key=lambda span: span[1] - span[0])
        starts = sorted([*starts, (start + end) // 2])
    return starts


def _filled(rows: Sequence[int], widths: Sequence[int], most: int) -> list[int]:
    """Starts of micro-batches that are filled one after the other up to `most` token positions each."""
    starts, count, widest = [0], 0, 0
    for place, (more, width) in enumerate(zip(rows, widths, strict=True)):
        count, widest = count + more, max(widest, width)
        if count * widest > most:
            starts.append(place)
            count, widest = more, width
    return starts


def padded_tokens(
    order: NDArray[np.int64], sampler: SortedSteps, micro_batch: int, rows: NDArray[np.int64], processes: int = 1
) -> int:
    """Token positions that the micro-batches of an epoch (or of its beginning) fill, padding included.

    `rows` says how many rows each pair takes; `sampler` knows how long the longest of them is.
    """
    total = 0
    for step in range(0, len(order), sampler.global_batch):
        here = order[step : step + sampler.global_batch]
        dealt = np.arange(len(here)) // micro_batch % processes
        for mine in (here[dealt == process] for process in range(processes)):
            if len(mine):
                counts, widths = rows[mine], sampler.lengths[mine]
                cuts = np.arange(0, len(mine), micro_batch)
                if sampler.sort:
                    cuts = np.array(balanced(counts.tolist(), widths.tolist(), len(cuts)))
                longest, together = np.maximum.reduceat(widths, cuts), np.add.reduceat(counts, cuts)
                total += sum(
                    count * padded_width(width)
                    for count, width in zip(together.tolist(), longest.tolist(), strict=True)
                )
    return total
