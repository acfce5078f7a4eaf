"""The order of pairs: what a step holds is drawn, how it is cut is sorted."""

from __future__ import annotations

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from shallow_signals.files import InputError
from shallow_signals.training.steps import SortedSteps, accumulation_steps, padded_tokens

LENGTHS = np.random.default_rng(5).lognormal(4, 0.7, 203).astype(np.int64) + 1


def sampler(**changes: object) -> SortedSteps:
    settings: dict[str, object] = {"global_batch": 32, "micro_batch": 4, "seed": 9}
    return SortedSteps(LENGTHS, **{**settings, **changes})  # type: ignore[arg-type]


def steps_of(order: list[int], size: int = 32) -> list[list[int]]:
    return [order[start : start + size] for start in range(0, len(order), size)]


def test_sorting_moves_pairs_within_their_step_only() -> None:
    ordered, plain = list(sampler()), list(sampler(sort=False))
    assert sorted(ordered) == sorted(plain) == list(range(203))
    for one, other in zip(steps_of(ordered), steps_of(plain), strict=True):
        assert sorted(one) == sorted(other)
        assert (np.diff(LENGTHS[one]) <= 0).all()
    assert ordered != plain


def test_steps_are_a_seeded_draw_of_their_own_in_each_epoch() -> None:
    one = sampler()
    first = list(one)
    assert list(one) == first == list(sampler())
    one.set_epoch(1)
    second = list(one)
    assert set(second[:32]) != set(first[:32])
    assert second == sampler().order(1).tolist()
    assert set(list(sampler(seed=10))[:32]) != set(first[:32])
    # A sort of everything would put the longest pairs into the first step; a draw does not.
    assert LENGTHS[first[:32]].mean() < 1.5 * LENGTHS.mean()


def test_one_process_keeps_the_short_last_step() -> None:
    one = sampler()
    assert (len(one), one.dropped, one.steps) == (203, 0, 7)
    batches = list(BatchSampler(one, 4, drop_last=False))
    assert [len(batch) for batch in batches] == [4] * 50 + [3]


@pytest.mark.parametrize(("processes", "dropped"), [(2, 3), (4, 11)])
def test_processes_get_equal_parts_of_the_same_steps(processes: int, dropped: int) -> None:
    """203 pairs: six steps of 32 and 11 left, of which full micro-batches for all processes are kept."""
    together = sampler(processes=processes)
    assert together.dropped == dropped
    shards = [
        list(BatchSamplerShard(BatchSampler(together, 4, drop_last=False), processes, rank, even_batches=False))
        for rank in range(processes)
    ]
    assert len({len(shard) for shard in shards}) == 1
    assert {len(batch) for shard in shards for batch in shard} == {4}
    seen = [index for shard in shards for batch in shard for index in batch]
    assert len(seen) == len(set(seen)) == 203 - dropped
    per_step = 32 // (4 * processes)
    for step, expected in enumerate(steps_of(list(sampler(sort=False)))[:6]):
        here = [
            index for shard in shards for batch in shard[step * per_step : (step + 1) * per_step] for index in batch
        ]
        assert sorted(here) == sorted(expected)


def test_too_few_pairs_for_all_processes_are_refused() -> None:
    with pytest.raises(InputError, match="3 training pairs"):
        SortedSteps([1, 2, 3], global_batch=8, micro_batch=4, processes=2, seed=0)


def test_accumulation() -> None:
    assert accumulation_steps(64, 8, 1) == 8
    assert accumulation_steps(64, 8, 4) == 2
    with pytest.raises(InputError, match="global_batch 64 is no multiple of micro_batch 24 x 2"):
        accumulation_steps(64, 24, 2)
    with pytest.raises(InputError, match="global_batch 4"):
        accumulation_steps(4, 8, 1)


def test_padded_tokens_against_a_loop_and_sorting_saves_them() -> None:
    rows = np.where(np.arange(203) % 5 == 0, 2, 1)
    counts = {}
    for sort in (True, False):
        order = sampler(sort=sort).order(0)
        expected = 0
        for batch in BatchSampler(order.tolist(), 4, drop_last=False):
            expected += int(rows[batch].sum() * LENGTHS[batch].max())
        counts[sort] = padded_tokens(order, 4, 32, rows, LENGTHS)
        assert counts[sort] == expected
    real = int((rows * LENGTHS).sum())
    assert real < counts[True] < 1.35 * real < 1.35 / 1.5 * counts[False]
