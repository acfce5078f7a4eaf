"""Implicit rewards of DPO at every cut: prefix sums of log-ratios, and what they get right.

r(x, y) = beta log(pi(y|x) / pi_ref(y|x)) up to a term of x alone, so for the first t tokens r_t = beta times the sum of
their log-ratios; with an end of turn at the cut, the closing's log-ratio after t tokens is added (Figures 2 and 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shallow_signals.data.pairs import uniform_hash
from shallow_signals.models.records import Floats, Ints, ResponseLogprobs

Doubles = NDArray[np.float64]
Side = Literal["head", "tail", "window"]


@dataclass(frozen=True)
class LogRatios:
    """One response's log pi - log pi_ref: per token [T], and of the closing after `closing_at` [C] tokens."""

    tokens: Floats
    closing_at: Ints
    closing: Floats

    def __len__(self) -> int:
        return int(self.tokens.size)


@dataclass(frozen=True)
class PairRatios:
    """Log-ratios of one pair, and the hash that draws its windows."""

    pair_id: str
    chosen: LogRatios
    rejected: LogRatios


def log_ratios(policy: ResponseLogprobs, reference: ResponseLogprobs) -> LogRatios:
    """Policy minus reference of one response; `ValueError` unless both read the same tokens and closings."""
    if policy.tokens.size != reference.tokens.size or not np.array_equal(policy.closing_at, reference.closing_at):
        raise ValueError("policy and reference were read on different tokens or closings")
    return LogRatios(policy.tokens - reference.tokens, policy.closing_at, policy.closing - reference.closing)


def kept(response: LogRatios, side: Side, length: int, key: str) -> float:
    """Sum of the log-ratios of `length` tokens at one side of a response (a window is placed by hash of `key`)."""
    total = len(response)
    first = {"head": 0, "tail": total - length}.get(side)
    if first is None:
        first = int(uniform_hash("window", key) * (total - length + 1))
    return float(response.tokens[first : first + length].sum(dtype=np.float64))


def closing_ratio(response: LogRatios, length: int) -> float:
    """The closing's log-ratio after `length` tokens; `ValueError` if it was not read there."""
    index = np.searchsorted(response.closing_at, length)
    if index == response.closing_at.size or response.closing_at[index] != length:
        raise ValueError(f"the closing was not read after {length} tokens")
    return float(response.closing[index])


def margins_at_ratio(
    pairs: Sequence[PairRatios], percent: int, side: Side = "head", *, closing: bool = False
) -> Doubles:
    """Chosen minus rejected log-ratio sums [n], `percent` of each response's own tokens kept (floor, at least 1)."""
    return _margins(
        pairs,
        [(kept_tokens(len(p.chosen), percent), kept_tokens(len(p.rejected), percent)) for p in pairs],
        side,
        closing,
    )


def margins_at_length(pairs: Sequence[PairRatios], tokens: int, *, closing: bool = False) -> Doubles:
    """Chosen minus rejected log-ratio sums [n] of the first `tokens` tokens (all, of a shorter response)."""
    return _margins(pairs, [(min(tokens, len(p.chosen)), min(tokens, len(p.rejected))) for p in pairs], "head", closing)


def margins_min_length(pairs: Sequence[PairRatios], percent: int = 100) -> Doubles:
    """Margins [n] with both responses cut to `percent` of the shorter one's tokens: the length gives nothing away."""
    lengths = [kept_tokens(min(len(p.chosen), len(p.rejected)), percent) for p in pairs]
    return _margins(pairs, [(length, length) for length in lengths], "head", False)


def margins_topshare(pairs: Sequence[PairRatios], selectors: Sequence[PairRatios], percent: int) -> Doubles:
    """Margins [n] over the `percent` of each response's tokens with the largest |log-ratio| under another model.

    `selectors` are the same pairs read by a model trained on other pairs: one that chose its own tokens would choose
    its own noise.
    """

    def best(response: LogRatios, selector: LogRatios) -> float:
        size = kept_tokens(len(response), percent)
        order = np.argsort(-np.abs(selector.tokens), kind="stable")[:size]
        return float(response.tokens[order].sum(dtype=np.float64))

    return np.array(
        [best(p.chosen, s.chosen) - best(p.rejected, s.rejected) for p, s in zip(pairs, selectors, strict=True)]
    )


def margins_random(pairs: Sequence[PairRatios], percent: int, seed: int) -> Doubles:
    """Margins [n] over a random `percent` of each response's tokens: the floor that `margins_topshare` must beat."""
    generator = np.random.default_rng(seed)

    def some(response: LogRatios) -> float:
        picked = generator.permutation(len(response))[: kept_tokens(len(response), percent)]
        return float(response.tokens[picked].sum(dtype=np.float64))

    return np.array([some(p.chosen) - some(p.rejected) for p in pairs])


def correct(margins: Doubles) -> Doubles:
    """1 where chosen is ahead, 0 where rejected is, one half for a tie (equal beginnings can only be guessed)."""
    return (1 + np.sign(margins)) / 2


def kept_tokens(total: int, percent: int) -> int:
    """Tokens that `percent` of a response keeps: floor, at least 1."""
    return max(1, percent * total // 100)


def _margins(pairs: Sequence[PairRatios], lengths: list[tuple[int, int]], side: Side, closing: bool) -> Doubles:
    if closing and side != "head":
        raise ValueError("a closing is read after the head of a response only")
    found = np.empty(len(pairs))
    for i, (pair, (chosen, rejected)) in enumerate(zip(pairs, lengths, strict=True)):
        margin = kept(pair.chosen, side, chosen, pair.pair_id)
        margin -= kept(pair.rejected, side, rejected, pair.pair_id)
        if closing:
            margin += closing_ratio(pair.chosen, chosen) - closing_ratio(pair.rejected, rejected)
        found[i] = margin
    return found
