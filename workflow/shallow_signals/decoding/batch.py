"""One batch of responses, token by token: the loop that runs both models and draws.

What the models compute depends only on the tokens so far. So responses of the same prompt, whatever their strategy,
parameter or sample, are one row of both models until they first draw different tokens. A prompt is read once for all
of them, and length control forks the policy's trajectory at each t, as the strategies draw from the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shallow_signals.decoding import streams
from shallow_signals.decoding.cache import Track
from shallow_signals.decoding.kl import argmax_rank, exact_kl, monte_carlo_kl
from shallow_signals.decoding.mixture import tilt
from shallow_signals.decoding.pair import ModelPair
from shallow_signals.decoding.records import MEASURES, Generation
from shallow_signals.decoding.rows import Indices, argmax, distinct, in_pieces, pick
from shallow_signals.decoding.strategies import Rules, Strategy, coefficient

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Job:
    """One response to make."""

    prompt_id: str
    prompt: Sequence[int]
    sample: int
    strategy: Strategy


@dataclass(frozen=True)
class Settings:
    """What all responses of a run share."""

    max_new_tokens: int
    end_ids: Sequence[int]  # tokens that end a response; empty: every response has `max_new_tokens`
    seed: int
    kl: bool = True  # measure both models at every position
    greedy: bool = False  # take the likeliest token of the sampling distribution instead of drawing one


def decode_batch(
    pair: ModelPair, jobs: Sequence[Job], settings: Settings, tick: Callable[[int, int], Any] | None = None
) -> list[Generation]:
    """Make the responses of `jobs` side by side, in their order.

    `tick` is told after every step how many responses were finished by it and how many tokens it drew.
    """
    with torch.inference_mode(), pair.evaluating():
        return _Batch(pair, jobs, settings).run(tick)


class _Batch:
    """The state of a batch. A *history* is a distinct (prompt, tokens so far); many jobs may stand on one."""

    def __init__(self, pair: ModelPair, jobs: Sequence[Job], settings: Settings) -> None:
        self.jobs, self.settings, self.vocabulary = jobs, settings, pair.vocabulary
        self.device = next(pair.policy.model.parameters()).device
        self.ends = np.zeros(self.vocabulary, dtype=bool)
        self.ends[[token for token in settings.end_ids if 0 <= token < self.vocabulary]] = True
        # The live jobs, and of each in turn: its strategy, its history, its stream.
        self.live: Indices = np.arange(len(jobs))
        self.rules = Rules.of([job.strategy for job in jobs])
        self.estimates: Indices = np.array([job.strategy.monte_carlo or 0 for job in jobs], dtype=np.int64)
        first, self.history = distinct([tuple(job.prompt) for job in jobs])
        prompts = [jobs[i].prompt for i in first]
        first, self.stream = distinct([(job.prompt_id, job.sample) for job in jobs])
        self.keys = [streams.stream_key(settings.seed, jobs[i].prompt_id, jobs[i].sample) for i in first]
        self.apart = len(prompts) == len(jobs)  # each on a history of its own; this stays so
        self.used, self.race_of = np.unique(self.stream, return_inverse=True)
        # A model that no job ever needs doesn't even read the prompts.
        self.policy = Track(pair.policy, prompts, self._wanted("policy", 1, len(prompts)), self.device)
        self.reference = Track(pair.reference, prompts, self._wanted("reference", 1, len(prompts)), self.device)
        if not settings.greedy:
            self.seeds = streams.seeds(self.keys, range(1, settings.max_new_tokens + 1)).to(self.device)
        self.tokens = np.zeros((settings.max_new_tokens, len(jobs)), dtype=np.int32)
        self.lengths = np.zeros(len(jobs), dtype=np.int64)
        self.ended = np.zeros(len(jobs), dtype=bool)
        steps = settings.max_new_tokens if settings.kl else 0
        self.measures = np.zeros((steps, len(MEASURES), len(jobs)), dtype=np.float32)

    def run(self, tick: Callable[[int, int], Any] | None) -> list[Generation]:
        """All steps; the responses in the order of the jobs."""
        last = self.settings.max_new_tokens
        for step in range(1, last + 1):
            drawn = self._step(step)
            ends = self.ends[drawn]
            self.tokens[step - 1, self.live] = drawn
            self.lengths[self.live] = step
            self.ended[self.live] = ends
            finished = int(ends.sum()) if step < last else len(drawn)
            if tick:
                tick(finished, len(drawn))
            if finished == len(drawn):
                break
            if finished:
                self._keep(np.flatnonzero(~ends))
                drawn = drawn[~ends]
            self._extend(step, drawn)
        return [self._generation(j) for j in range(len(self.jobs))]

    def _keep(self, jobs: Indices) -> None:
        """Go on with some of the live jobs, in this order."""
        self.rules = self.rules.take(jobs)
        self.live, self.estimates = self.live[jobs], self.estimates[jobs]
        self.history, self.stream = self.history[jobs], self.stream[jobs]
        self.used, self.race_of = np.unique(self.stream, return_inverse=True)

    def _step(self, step: int) -> Indices:
        """Draw the next token of every live job and note what was measured; the tokens."""
        both = self.settings.kl
        policy = self.policy.read() if both or self._needed("policy", step, step).any() else None
        reference = self.reference.read() if both or self._needed("reference", step, step).any() else None
        kl = self._history_kl(policy, reference)
        a = coefficient(self.rules, step, self._compared_kl(kl, policy, reference, step))
        first, draw_of = self._draws(a)
        race = None
        if not self.settings.greedy:
            race = streams.exponentials(pick(self.seeds[:, step - 1], self.used), self.vocabulary)
        tokens, measured = [], []
        for draws in in_pieces(first, self.vocabulary, self.device):
            history = self.history[draws]
            # Where a model follows no history of a draw, its coefficient leaves the model out: any row will do.
            own = None if policy is None else pick(policy, np.maximum(self.policy.row_of[history], 0))
            other = None if reference is None else pick(reference, np.maximum(self.reference.row_of[history], 0))
            logps = _sampling(own, other, a[draws])
            probabilities = logps.exp()
            if race is None:
                tokens.append(argmax(logps))
            else:
                tokens.append(streams.draw_tokens(probabilities, pick(race, self.race_of[draws])))
            if self.settings.kl:
                assert own is not None and other is not None and kl is not None
                at_policy = pick(kl, history)
                at_sampling = at_policy if logps is own else exact_kl(logps, other, probabilities)
                measured.append(_measure(logps, own, other, tokens[-1], at_policy, at_sampling))
        if self.settings.kl:
            self.measures[step - 1][:, self.live] = _on_cpu(measured)[:, draw_of]
        drawn: Indices = _on_cpu(tokens)[draw_of]
        return drawn

    def _draws(self, a: Floats) -> tuple[Indices, Indices]:
        """Jobs on one history, with one stream and one coefficient, draw one token from one distribution.

        Returns a job for each draw, and the draw of each job.
        """
        if self.apart:
            every = np.arange(len(a))
            return every, every
        return distinct(list(zip(self.history.tolist(), self.stream.tolist(), a.tolist(), strict=True)))

    def _extend(self, step: int, drawn: Indices) -> None:
        """Append the drawn tokens to the live jobs' histories: some part here, finished ones fall out."""
        before = self.history
        if self.apart:
            first = self.history = np.arange(len(drawn))
        else:
            first, self.history = distinct(list(zip(before.tolist(), drawn.tolist(), strict=True)))
            self.apart = len(first) == len(drawn)
        parents, tokens = before[first], torch.from_numpy(drawn[first]).to(self.device)
        self.policy.follow(parents, tokens, self._wanted("policy", step + 1, len(first)))
        self.reference.follow(parents, tokens, self._wanted("reference", step + 1, len(first)))
        rows = self.policy.row_of[self.history]
        if self.apart and (rows[1:] < rows[:-1]).any():  # in the order of the rows, nothing has to be picked out
            self._keep(np.argsort(rows))

    def _needed(self, side: Literal["policy", "reference"], start: int, end: int) -> NDArray[np.bool_]:
        """Which live jobs draw from a model's output, or compare it, at one of the steps from `start` to `end`."""
        rules = self.rules
        unused = 0.0 if side == "policy" else 1.0  # the coefficient with which this model has no part in the mixture
        early = (start <= rules.last) & (rules.high != unused)
        late = (end > rules.last) & (rules.low != unused)
        needed: NDArray[np.bool_] = rules.compares | early | late
        return needed

    def _wanted(self, side: Literal["policy", "reference"], step: int, histories: int) -> NDArray[np.bool_]:
        """Which histories a model has to follow, as a job on them needs it at `step` or later."""
        if self.settings.kl:  # measured in both models
            return np.ones(histories, dtype=bool)
        wanted = np.zeros(histories, dtype=bool)
        wanted[self.history[self._needed(side, step, self.settings.max_new_tokens)]] = True
        return wanted

    def _history_kl(self, policy: Tensor | None, reference: Tensor | None) -> Tensor | None:
        """Exact KL(policy || reference) after each history that both models have read, [histories]; 0 elsewhere."""
        if policy is None or reference is None or not (self.settings.kl or self.rules.compares.any()):
            return None
        rows = self.policy.row_of, self.reference.row_of
        if len(policy) == len(reference) == len(rows[0]) and np.array_equal(*rows):
            return pick(exact_kl(policy, reference), rows[0])
        both = np.flatnonzero((rows[0] >= 0) & (rows[1] >= 0))
        kl = torch.zeros(len(rows[0]), device=self.device)
        found = exact_kl(pick(policy, rows[0][both]), pick(reference, rows[1][both]))
        kl[torch.from_numpy(both).to(self.device)] = found
        return kl

    def _compared_kl(self, kl: Tensor | None, policy: Tensor | None, reference: Tensor | None, step: int) -> Floats:
        """The KL that each live job compares with its threshold, exact or estimated; 0 where none does."""
        compares = self.rules.compares
        if kl is None or policy is None or reference is None or not compares.any():
            return np.zeros(len(self.live))
        values = kl.double().cpu().numpy()[self.history]
        for samples in sorted({int(k) for k in self.estimates[compares] if k}):
            mine = np.flatnonzero(compares & (self.estimates == samples))
            history, stream = self.history[mine], self.stream[mine]
            numbers = streams.uniforms([self.keys[s] for s in stream], [step], samples, streams.ESTIMATES)[:, 0]
            values[mine] = (
                monte_carlo_kl(
                    pick(policy, self.policy.row_of[history]),
                    pick(reference, self.reference.row_of[history]),
                    torch.from_numpy(numbers).to(self.device),
                )[0]
                .cpu()
                .numpy()
            )
        return values

    def _generation(self, j: int) -> Generation:
        job, length = self.jobs[j], self.lengths[j]
        measures: dict[str, Any] = {}
        if self.settings.kl:
            measures = {name: self.measures[:length, m, j].copy() for m, name in enumerate(MEASURES)}
            measures["argmax_rank"] = measures["argmax_rank"].astype(np.int32)
        tokens = self.tokens[:length, j].copy()
        return Generation(job.prompt_id, job.sample, job.strategy.name, tokens, bool(self.ended[j]), **measures)


def _sampling(policy: Tensor | None, reference: Tensor | None, a: Floats) -> Tensor:
    """Log-probabilities to draw from with coefficients `a`, [draws, vocabulary]; None for a model that has no part."""
    kinds = set(a.tolist())
    if policy is not None and (reference is None or kinds == {1.0}):
        return policy
    if reference is not None and (policy is None or kinds == {0.0}):
        return reference
    assert policy is not None and reference is not None
    return tilt(policy, reference, torch.from_numpy(a).to(policy.device), pure=bool(kinds & {0.0, 1.0}))


def _measure(
    logps: Tensor, policy: Tensor, reference: Tensor, tokens: Tensor, kl: Tensor, sampling_kl: Tensor
) -> Tensor:
    """The measures of `MEASURES` for each draw, float32 [measures, draws]."""
    at = tokens[:, None]
    sampled, own, other = (source.gather(1, at)[:, 0] for source in (logps, policy, reference))
    rank = argmax_rank(policy, reference).float()
    return torch.stack([kl, sampling_kl, sampled - other, own, other, rank])


def _on_cpu(pieces: list[Tensor]) -> Any:
    """Pieces side by side along the last axis."""
    return (pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)).cpu().numpy()
