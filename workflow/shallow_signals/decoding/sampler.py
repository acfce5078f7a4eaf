"""Generate with two models: the front door of the decoding engine."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from shallow_signals.data.pairs import content_id
from shallow_signals.decoding.batch import Job, Settings, decode_batch
from shallow_signals.decoding.pair import ModelPair, pair_models
from shallow_signals.decoding.records import Generation
from shallow_signals.decoding.shards import Shards
from shallow_signals.decoding.strategies import Strategy
from shallow_signals.files import InputError


def generate(
    policy: nn.Module,
    reference: nn.Module | None,
    prompts: Sequence[Sequence[int]],
    strategies: Sequence[Strategy],
    *,
    max_new_tokens: int,
    end_ids: Sequence[int],
    seed: int,
    samples: int = 1,
    first_sample: int = 0,
    batch_size: int = 32,
    kl: bool = True,
    greedy: bool = False,
    prompt_ids: Sequence[str] | None = None,
    tokenizers: tuple[Any, Any] | None = None,
    state: Path | None = None,
    progress: bool = False,
) -> list[Generation]:
    """Sample `samples` responses to every prompt with every strategy at temperature 1; prompt by prompt, in order.

    `policy` and `reference` are causal language models of one vocabulary on one device; a policy that is a peft adapter
    may have None for a reference: its base. `prompts` are token ids and end with the generation prompt. A response ends
    with the first token of `end_ids`, or at `max_new_tokens`. Samples are numbered from `first_sample`.

    The random numbers depend on `seed`, prompt id (by default a hash of the prompt's tokens), sample and position only:
    in float32 neither the order of the prompts nor `batch_size` (responses side by side) changes a token, but where a
    KL comes within rounding of its threshold. Strategies are compared on common numbers, so responses of one prompt and
    sample are correlated across strategies: compare strategies by paired intervals over prompts.

    `kl` measures both models at every position; without it, a model is run only where a strategy samples from it.
    `greedy` takes the likeliest token of the sampling distribution. With a folder `state` every batch is kept there as
    it is finished; after an interruption the same call goes on and gives the same bytes, in any dtype.

    Input that can't be used is an `InputError`: vocabularies that differ (`tokenizers` are compared where given), empty
    or overlong prompts, repeated ids, a `state` that holds another run.
    """
    pair = pair_models(policy, reference, tokenizers)
    ids = _ids(prompts, prompt_ids)
    _check(pair, prompts, ids, strategies, max_new_tokens, samples, batch_size)
    settings = Settings(max_new_tokens, tuple(end_ids), seed, kl, greedy)
    drawn = range(first_sample, first_sample + samples)
    batches = plan_batches(prompts, ids, strategies, drawn, batch_size)
    shards = Shards(state, batches, settings) if state else None
    made: list[Generation] = []
    with _bar(sum(map(len, batches)), progress) as tick:
        for number, jobs in enumerate(batches):
            found = shards.read(number) if shards else None
            if found is None:
                found = decode_batch(pair, jobs, settings, tick)
                if shards:
                    shards.write(number, found)
            else:
                tick(len(jobs), 0)
            made += found
    place = {(g.prompt_id, g.sample, g.strategy): g for g in made}
    return [place[i, sample, s.name] for i in ids for sample in drawn for s in strategies]


def plan_batches(
    prompts: Sequence[Sequence[int]],
    ids: Sequence[str],
    strategies: Sequence[Strategy],
    samples: Sequence[int],
    batch_size: int,
) -> list[list[Job]]:
    """All jobs in batches of `batch_size`: prompts of like length together, longest first, a prompt's jobs in a row.

    The same arguments give the same batches, on which resuming rests.
    """
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), ids[i]))
    jobs = [Job(ids[i], prompts[i], sample, s) for i in order for sample in samples for s in strategies]
    return [jobs[start : start + batch_size] for start in range(0, len(jobs), batch_size)]


def _ids(prompts: Sequence[Sequence[int]], given: Sequence[str] | None) -> list[str]:
    if given is None:
        # A prompt that is given twice gets streams of its own each time.
        seen: Counter[tuple[int, ...]] = Counter()
        made = []
        for prompt in prompts:
            key = tuple(prompt)
            made.append(content_id(list(map(int, key)), seen[key]))
            seen[key] += 1
        return made
    if len(given) != len(prompts):
        raise InputError(f"prompt_ids: {len(given)} ids for {len(prompts)} prompts; give one for each")
    if repeated := [name for name, count in Counter(given).items() if count > 1]:
        raise InputError(f"prompt_ids: '{repeated[0]}' stands more than once; give every prompt an id of its own")
    return list(given)


def _check(
    pair: ModelPair,
    prompts: Sequence[Sequence[int]],
    ids: Sequence[str],
    strategies: Sequence[Strategy],
    max_new_tokens: int,
    samples: int,
    batch_size: int,
) -> None:
    for name, value in (("max_new_tokens", max_new_tokens), ("samples", samples), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(f"{name}: {value} is too few; give 1 or more")
    if repeated := [name for name, count in Counter(s.name for s in strategies).items() if count > 1]:
        raise InputError(f"strategies: {repeated[0]} is given more than once; leave the others out")
    for name, prompt in zip(ids, prompts, strict=True):
        if not len(prompt):
            raise InputError(f"prompt {name}: it is empty; put at least the generation prompt")
        if min(prompt) < 0 or max(prompt) >= pair.vocabulary:
            raise InputError(
                f"prompt {name}: a token id is outside the vocabulary of {pair.vocabulary}; tokenize it again"
            )
        if pair.max_positions and len(prompt) + max_new_tokens > pair.max_positions:
            raise InputError(
                f"prompt {name}: {len(prompt)} tokens and {max_new_tokens} new ones exceed the models' "
                f"{pair.max_positions} positions; cut the prompt or lower max_new_tokens"
            )


@contextmanager
def _bar(responses: int, shown: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar over responses that tells tokens per second; what it yields takes (finished, tokens drawn)."""
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    if not shown:
        yield lambda finished, drawn: None
        return
    started, tokens = time.monotonic(), 0
    with tqdm(total=responses, unit="response", mininterval=1.0) as bar:

        def tick(finished: int, drawn: int) -> None:
            nonlocal tokens
            tokens += drawn
            bar.set_postfix_str(f"{tokens / max(time.monotonic() - started, 1e-9):,.0f} tokens/s", refresh=False)
            bar.update(finished)

        yield tick
