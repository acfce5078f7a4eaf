"""One batch of responses, token by token: the loop that runs both models and draws.

What the models compute depends only on the tokens so far. So responses of the same prompt, whatever their strategy,
parameter or sample, are one row of both models until they first draw different tokens. A prompt is read once for all
of them, and length control forks the policy's trajectory at each t, as the strategies draw from the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shallow_signals.decoding import streams
from shallow_signals.decoding.cache import Indices, Track
from shallow_signals.decoding.kl import argmax_rank, exact_kl, monte_carlo_kl
from shallow_signals.decoding.pair import ModelPair
from shallow_signals.decoding.records import MEASURES, Generation
from shallow_signals.decoding.strategies import Rules, Strategy, coefficient, tilt

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
        self.rules = Rules.of([job.strategy for job in jobs])
        self.estimates = np.array([job.strategy.monte_carlo or 0 for job in jobs])
        self.live: Indices = np.arange(len(jobs))
        first, self.history = _distinct([tuple(job.prompt) for job in jobs])
        prompts = [jobs[i].prompt for i in first]
        first, self.stream = _distinct([(job.prompt_id, job.sample) for job in jobs])
        self.keys = [streams.stream_key(settings.seed, jobs[i].prompt_id, jobs[i].sample) for i in first]
        # A model that no job ever needs doesn't even read the prompts.
        self.policy = Track(pair.policy, prompts, self._wanted("policy", 1, len(prompts)), self.device)
        self.reference = Track(pair.reference, prompts, self._wanted("reference", 1, len(prompts)), self.device)
        if not settings.greedy:
            self.seeds = streams.seeds(self.keys, range(1, settings.max_new_tokens + 1)).to(self.device)
        self.tokens = np.zeros((len(jobs), settings.max_new_tokens), dtype=np.int32)
        self.lengths = np.zeros(len(jobs), dtype=np.int64)
        self.ended = np.zeros(len(jobs), dtype=bool)
        width = settings.max_new_tokens if settings.kl else 0
        self.measures = np.zeros((len(MEASURES), len(jobs), width), dtype=np.float32)

    def run(self, tick: Callable[[int, int], Any] | None) -> list[Generation]:
        """All steps; the responses in the order of the jobs."""
        last = self.settings.max_new_tokens
        for step in range(1, last + 1):
            drawn = self._step(step)
            self.tokens[self.live, step - 1] = drawn
            self.lengths[self.live] = step
            self.ended[self.live] = ends = np.isin(drawn, self.settings.end_ids)
            going = ~ends if step < last else np.zeros(len(ends), dtype=bool)
            if tick:
                tick(int((~going).sum()), len(drawn))
            self.live = self.live[going]
            if not len(self.live):
                break
            self._extend(step, drawn[going])
        return [self._generation(j) for j in range(len(self.jobs))]

    def _step(self, step: int) -> Indices:
        """Draw the next token of every live job and note what was measured; the tokens."""
        live, rules = self.live, self.rules.take(self.live)
        policy = self.policy.read() if self._needed("policy", step, step).any() else None
        reference = self.reference.read() if self._needed("reference", step, step).any() else None
        kl = self._history_kl(policy, reference, compared=bool(rules.compares.any()))
        a = coefficient(rules, step, self._compared_kl(kl, policy, reference, step))
        # Jobs on one history, with one stream and one coefficient, draw the same token from the same distribution.
        first, draw_of = _distinct(
            list(zip(self.history[live].tolist(), self.stream[live].tolist(), a.tolist(), strict=True))
        )
        history, stream, a = self.history[live[first]], self.stream[live[first]], a[first]
        logps = self._sampling(policy, reference, history, a)
        if self.settings.greedy:
            tokens = logps.argmax(-1)
        else:
            used, race_of = np.unique(stream, return_inverse=True)
            race = streams.exponentials(_pick(self.seeds[:, step - 1], used), self.vocabulary)
            tokens = streams.draw_tokens(logps, _pick(race, race_of))
        if self.settings.kl:
            assert policy is not None and reference is not None and kl is not None
            policy, reference = (
                _pick(policy, self.policy.row_of[history]),
                _pick(reference, self.reference.row_of[history]),
            )
            measured = _measure(logps, policy, reference, tokens, _pick(kl, history), a)
            self.measures[:, live, step - 1] = measured[:, draw_of]
        drawn: Indices = tokens.cpu().numpy()[draw_of]
        return drawn

    def _extend(self, step: int, drawn: Indices) -> None:
        """Append the drawn tokens to the live jobs' histories: some part here, finished ones fall out."""
        before = self.history[self.live]
        first, self.history[self.live] = _distinct(list(zip(before.tolist(), drawn.tolist(), strict=True)))
        parents, tokens = before[first], torch.from_numpy(drawn[first]).to(self.device)
        self.policy.follow(parents, tokens, self._wanted("policy", step + 1, len(first)))
        self.reference.follow(parents, tokens, self._wanted("reference", step + 1, len(first)))

    def _needed(self, side: Literal["policy", "reference"], start: int, end: int) -> NDArray[np.bool_]:
        """Which live jobs need a model's output at one of the steps from `start` to `end`."""
        if self.settings.kl:
            return np.ones(len(self.live), dtype=bool)
        rules = self.rules.take(self.live)
        unused = 0.0 if side == "policy" else 1.0  # the coefficient with which this model has no part in the mixture
        early = (start <= rules.last) & (rules.high != unused)
        late = (end > rules.last) & (rules.low != unused)
        needed: NDArray[np.bool_] = rules.compares | early | late
        return needed

    def _wanted(self, side: Literal["policy", "reference"], step: int, histories: int) -> NDArray[np.bool_]:
        """Which histories a model has to follow, as a job on them needs it at `step` or later."""
        wanted = np.zeros(histories, dtype=bool)
        wanted[self.history[self.live][self._needed(side, step, self.settings.max_new_tokens)]] = True
        return wanted

    def _history_kl(self, policy: Tensor | None, reference: Tensor | None, compared: bool) -> Tensor | None:
        """Exact KL(policy || reference) after each history that both models have read, [histories]; 0 elsewhere."""
        if policy is None or reference is None or not (compared or self.settings.kl):
            return None
        rows = self.policy.row_of, self.reference.row_of
        both = np.flatnonzero((rows[0] >= 0) & (rows[1] >= 0))
        found = exact_kl(_pick(policy, rows[0][both]), _pick(reference, rows[1][both]))
        if len(both) == len(rows[0]):
            return found
        kl = torch.zeros(len(rows[0]), device=self.device)
        kl[torch.from_numpy(both).to(self.device)] = found
        return kl

    def _compared_kl(self, kl: Tensor | None, policy: Tensor | None, reference: Tensor | None, step: int) -> Floats:
        """The KL that each live job compares with its threshold, exact or estimated; 0 where none does."""
        compares = self.rules.compares[self.live]
        values = np.zeros(len(self.live))
        if kl is None or policy is None or reference is None or not compares.any():
            return values
        values = kl.double().cpu().numpy()[self.history[self.live]]
        for samples in sorted({int(k) for k in self.estimates[self.live][compares] if k}):
            mine = np.flatnonzero(compares & (self.estimates[self.live] == samples))
            history, stream = self.history[self.live[mine]], self.stream[self.live[mine]]
            numbers = streams.uniforms([self.keys[s] for s in stream], [step], samples, streams.ESTIMATES)[:, 0]
            values[mine] = (
                monte_carlo_kl(
                    _pick(policy, self.policy.row_of[history]),
                    _pick(reference, self.reference.row_of[history]),
                    torch.from_numpy(numbers).to(self.device),
                )[0]
                .cpu()
                .numpy()
            )
        return values

    def _sampling(self, policy: Tensor | None, reference: Tensor | None, history: Indices, a: Floats) -> Tensor:
        """Log-probabilities to draw from after each of `history` with coefficients `a`, [draws, vocabulary]."""
        made: list[tuple[NDArray[np.bool_], Tensor]] = []
        for where in (a == 1, a == 0, (a != 0) & (a != 1)):
            if not where.any():
                continue
            rows = self.policy.row_of[history[where]], self.reference.row_of[history[where]]
            if a[where][0] == 1 and policy is not None:
                part = _pick(policy, rows[0])
            elif a[where][0] == 0 and reference is not None:
                part = _pick(reference, rows[1])
            else:
                assert policy is not None and reference is not None
                weights = torch.from_numpy(a[where]).to(self.device)
                part = tilt(_pick(policy, rows[0]), _pick(reference, rows[1]), weights)
            made.append((where, part))
        if len(made) == 1:
            return made[0][1]
        logps = torch.empty(len(a), self.vocabulary, device=self.device)
        for where, part in made:
            logps[torch.from_numpy(where).to(self.device)] = part
        return logps

    def _generation(self, j: int) -> Generation:
        job, length = self.jobs[j], self.lengths[j]
        measures: dict[str, Any] = {}
        if self.settings.kl:
            measures = {name: self.measures[m, j, :length].copy() for m, name in enumerate(MEASURES)}
            measures["argmax_rank"] = measures["argmax_rank"].astype(np.int32)
        tokens = self.tokens[j, :length].copy()
        return Generation(job.prompt_id, job.sample, job.strategy.name, tokens, bool(self.ended[j]), **measures)


def _measure(logps: Tensor, policy: Tensor, reference: Tensor, tokens: Tensor, kl: Tensor, a: Floats) -> Any:
    """The measures of `MEASURES` for each draw, float32 [measures, draws], on the CPU."""
    sampling_kl = torch.where(torch.from_numpy(a == 1).to(kl.device), kl, 0.0)
    if len(mixed := np.flatnonzero((a != 0) & (a != 1))):
        sampling_kl[torch.from_numpy(mixed).to(kl.device)] = exact_kl(_pick(logps, mixed), _pick(reference, mixed))
    at = tokens[:, None]
    sampled, own, other = (source.gather(1, at)[:, 0] for source in (logps, policy, reference))
    rank = argmax_rank(policy, reference).float()
    return torch.stack([kl, sampling_kl, sampled - other, own, other, rank]).cpu().numpy()


def _pick(values: Tensor, rows: Indices) -> Tensor:
    """Some rows; the tensor itself where that is all of them in order."""
    if len(rows) == len(values) and np.array_equal(rows, np.arange(len(rows))):
        return values
    return values.index_select(0, torch.from_numpy(rows).to(values.device))


def _distinct(keys: Sequence[Hashable]) -> tuple[Indices, Indices]:
    """Where each distinct key stands first, [distinct], and every key's number among these, [keys]."""
    numbers: dict[Hashable, int] = {}
    first: list[int] = []
    number_of = np.empty(len(keys), dtype=np.int64)
    for i, key in enumerate(keys):
        number = numbers.setdefault(key, len(first))
        if number == len(first):
            first.append(i)
        number_of[i] = number
    return np.array(first, dtype=np.int64), number_of
