"""The mixture of a policy and its reference that the strategies sample from (see `decoding.strategies`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shallow_signals.decoding.kl import exact_kl
from shallow_signals.decoding.strategies import Rules, Strategy, coefficient


def tilt(policy_logps: Tensor, reference_logps: Tensor, a: Tensor, *, pure: bool = True) -> Tensor:
    """log softmax(a log policy + (1 - a) log reference), [rows, vocabulary]; a is [rows].

    Where a is 0 or 1 the result is the one model's log-probabilities, bit for bit; with `pure` False no a may be.
    """
    a = a.to(policy_logps.dtype)[:, None]
    mixed = torch.lerp(reference_logps, policy_logps, a)
    normed = mixed.log_softmax(-1)
    return torch.where((a == 0) | (a == 1), mixed, normed) if pure else normed


def sampling_logps(
    strategies: Sequence[Strategy], policy_logps: Tensor, reference_logps: Tensor, step: NDArray[np.int64] | int
) -> Tensor:
    """The distributions that the strategies, one a row, sample from: log-probabilities [rows, vocabulary].

    `policy_logps` and `reference_logps` are normalised, [rows, vocabulary]; `step` is the 1-based position of the token
    to come, one for all or one a row. Thresholds are compared with the exact KL.
    """
    kl = exact_kl(policy_logps, reference_logps).double().cpu().numpy()
    a = coefficient(Rules.of(strategies), step, kl)
    return tilt(policy_logps, reference_logps, torch.from_numpy(a).to(policy_logps.device))
