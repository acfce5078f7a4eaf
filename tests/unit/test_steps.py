"""The order of pairs: what a step holds is drawn, how it is cut is sorted."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from shallow_signals.files import InputError
from shallow_signals.models.tree import padded_width
from shallow_signals.training.steps import SortedSteps, accumulation_steps, balanced, padded_tokens

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
        made = sampler(sort=sort)
        order = made.order(0)
        expected = 0
        for step in BatchSampler(order.tolist(), 32, drop_last=False):
            starts = list(range(0, len(step), 4))
            if sort:
                starts = balanced(rows[step].tolist(), LENGTHS[step].tolist(), len(starts))
            for start, end in pairwise([*starts, len(step)]):
                batch = step[start:end]
                expected += int(rows[batch].sum()) * padded_width(int(LENGTHS[batch].max()))
        counts[sort] = padded_tokens(order, made, 4, rows)
        assert counts[sort] == expected
    real = int((rows * LENGTHS).sum())
    assert real < counts[True] < 1.35 * real < 1.35 / 1.5 * counts[False]


@pytest.mark.parametrize("seed", range(20))
def test_the_largest_micro_batch_is_as_small_as_any_cut_makes_it(seed: int) -> None:
    draw = np.random.default_rng(seed)
    number = int(draw.integers(1, 9))
    widths = sorted(draw.integers(1, 50, number).tolist(), reverse=bool(seed % 4))  # falling, but for some
    rows = draw.integers(1, 3, number).tolist()
    parts = int(draw.integers(1, number + 1))

    def largest(starts: list[int]) -> int:
        return max(sum(rows[a:b]) * max(widths[a:b]) for a, b in pairwise([*starts, number]))

    found = balanced(rows, widths, parts)
    assert len(found) == len(set(found)) == parts
    assert found == sorted(found) and found[0] == 0
    assert largest(found) == min(largest([0, *cuts]) for cuts in combinations(range(1, number), parts - 1))


def test_a_long_pair_stands_alone() -> None:
    assert balanced([1] * 9, [100, *[10] * 8], 3) == [0, 1, 5]
