"""Divergences between next-token distributions: exact, by Monte Carlo, and summed over a response.

The paper defines the KL at a position as E_{y ~ policy} log(policy(y) / reference(y)) and estimates it from K = 1,000
sampled tokens (section 3.3.2); over the whole vocabulary the same expectation is a sum, which is exact and never
negative. The KL of a response (section 5.1) is a sum over its positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from shallow_signals.decoding.rows import argmax

if TYPE_CHECKING:
    from shallow_signals.decoding.records import Generation

_LEAST = -1e4  # stands for the logarithm of zero: it can be scaled and subtracted, and its exponential is zero


def log_probs(logits: Tensor) -> Tensor:
    """log softmax over the last axis in float32, finite everywhere."""
    return torch.log_softmax(logits.float(), dim=-1).clamp_(min=_LEAST)


def exact_kl(logps: Tensor, reference_logps: Tensor, probabilities: Tensor | None = None) -> Tensor:
    """KL(p || reference) = sum_y p(y) (log p(y) - log reference(y)) in nats, [rows], from two [rows, vocabulary].

    `probabilities` are the exponentials of `logps`, where they are known.
    """
    weights = logps.exp() if probabilities is None else probabilities
    return (logps - reference_logps).mul_(weights).sum(-1).clamp_(min=0.0)


def monte_carlo_kl(logps: Tensor, reference_logps: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """The paper's estimator (section 3.3.2): the mean of log(p(y) / reference(y)) over K tokens y drawn from p.

    `numbers` are uniform, [rows, K]. Returns the mean and its standard error, [rows] each. It can be negative.
    """
    cumulated = logps.double().exp().cumsum(-1)
    tokens = torch.searchsorted(cumulated, numbers.double() * cumulated[:, -1:], right=True)
    ratios = (logps.gather(1, tokens) - reference_logps.gather(1, tokens)).double()
    return ratios.mean(-1), ratios.std(-1) / ratios.shape[1] ** 0.5


def argmax_rank(logps: Tensor, reference_logps: Tensor) -> Tensor:
    """Rank under the reference of the likeliest token, int64 [rows]; 1: both agree.

    1, 2-3 and more are the "unshifted", "marginal" and "shifted" tokens of Lin et al. 2023 (arXiv 2312.01552).
    """
    best = argmax(logps)[:, None]
    return (reference_logps - reference_logps.gather(1, best)).gt_(0).sum(-1).long() + 1


def sequence_kl(generation: Generation) -> tuple[float, float]:
    """The KL of the sampling distribution from the reference over one response: (Rao-Blackwellised, sampled).

    The sampled form is the paper's, sum_t log(sampling(y_t) / reference(y_t)) (section 5.1). The first form puts the
    exact KL at each position in place of the sampled ratio: the same expectation, less variance. The position that
    ends the turn counts. Needs a generation made with `kl=True`.
    """
    if generation.kl_sampling_reference is None or generation.log_ratio is None:
        raise ValueError("generated without KL: pass kl=True")
    exact, sampled = generation.kl_sampling_reference, generation.log_ratio
    return float(exact.sum(dtype=np.float64)), float(sampled.sum(dtype=np.float64))


def continuations(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], keep: int
) -> tuple[list[list[int]], list[int]]:
    """Prompts that end in the first `keep` tokens of a response, for sampling from a given prefix (Qi et al. 2024).

    Returns the extended prompts and the indices of the responses longer than `keep`; shorter ones are left out. What is
    then generated at position j stands at position keep + j of the response.
    """
    chosen = [i for i, response in enumerate(responses) if len(response) > keep]
    return [[*prompts[i], *responses[i][:keep]] for i in chosen], chosen
