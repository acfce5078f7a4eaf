"""Decoding strategies of a policy and its reference (section 3.3 of the paper) as one family.

Every strategy samples the next token from the mixture

    softmax(a log policy + (1 - a) log reference)

and differs only in how the coefficient a of a row follows from the step k (1-based) and from KL(policy || reference)
at that step:

    a = high if k <= last and KL > floor else low

| strategy             | a                                  | high | low           | last | floor |
|----------------------|------------------------------------|------|---------------|------|-------|
| reference            | 0                                  | 0    | 0             | inf  | -inf  |
| policy               | 1                                  | 1    | 1             | inf  | -inf  |
| mixing(a)            | a                                  | a    | a             | inf  | -inf  |
| length_control(t)    | 1 for the first t tokens, then 0   | 1    | 0             | t    | -inf  |
| kl_threshold(b)      | 1 where KL > b, else the fallback's | 1   | 0 (or 0.5)    | inf  | b     |
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shallow_signals.files import InputError

Kind = Literal["reference", "policy", "mixing", "length", "threshold"]
Fallback = Literal["reference", "mixture"]
Floats = NDArray[np.float64]
MONTE_CARLO_SAMPLES = 1000  # K of the paper
_NUMBER = r"-?(?:[0-9.]+(?:e[-+]?[0-9]+)?|inf)"
_NAME = re.compile(
    rf"(?P<kind>reference|policy|mix(?P<a>{_NUMBER})|length(?P<t>[0-9]+|inf)|threshold(?P<b>{_NUMBER}))"
    r"(?P<mixture>-mixture)?(?:-mc(?P<samples>[1-9][0-9]*))?"
)


@dataclass(frozen=True)
class Strategy:
    """How to sample from two models. Made by the functions below or from its name by `parse`."""

    kind: Kind
    parameter: float = 0.0  # a, t or b
    fallback: Fallback = "reference"  # read by `threshold` only
    monte_carlo: int | None = None  # read by `threshold` only: samples that estimate its KL; None: exact

    @property
    def name(self) -> str:
        """`reference`, `policy`, `mix0.50`, `length8`, `threshold0.1`, `threshold0.1-mixture-mc1000`."""
        if self.kind in ("reference", "policy"):
            return self.kind
        if self.kind == "mixing":
            return f"mix{_written(self.parameter, '.2f')}"
        if self.kind == "length":
            return f"length{self.parameter:.0f}"
        mixture = "-mixture" if self.fallback == "mixture" else ""
        estimator = f"-mc{self.monte_carlo}" if self.monte_carlo else ""
        return f"threshold{_written(self.parameter, 'g')}{mixture}{estimator}"


def _written(number: float, form: str) -> str:
    """`number` in a short form, or in full where that would lose digits."""
    short = format(number, form)
    return short if float(short) == number else repr(number)


def reference() -> Strategy:
    """Sample from the reference alone: a = 0."""
    return Strategy("reference")


def policy() -> Strategy:
    """Sample from the policy alone: a = 1."""
    return Strategy("policy")


def mixing(a: float) -> Strategy:
    """softmax(a log(policy / reference) + log reference): section 3.3.1, the baseline of Figure 4.

    Token for token this is decoding-time realignment (Liu et al. 2024, arXiv 2402.02992), with a its lambda: where the
    policy was trained with KL coefficient beta, a stands for one trained with beta / a, exactly so for whole sequences
    and approximately for a token. a may exceed 1. At a fixed context the KL to the reference rises with a > 0, with
    derivative a Var(log(policy / reference)) under the mixture.
    """
    if not math.isfinite(a):
        raise InputError(f"mixing: a = {a} is not a finite number; give one, say 0.5")
    return Strategy("mixing", float(a))


def length_control(t: float) -> Strategy:
    """The policy for the first t tokens (k <= t), the reference from then on: section 3.3.2. t may be infinite."""
    if not (t >= 0 and (t == math.inf or t == int(t))):
        raise InputError(f"length control: t = {t} is no number of tokens; give 0, 1, 2, ... or inf")
    return Strategy("length", float(t))


def kl_threshold(b: float, *, fallback: Fallback = "reference", monte_carlo: int | None = None) -> Strategy:
    """The policy where KL(policy || reference) > b nats at this token, else the fallback: section 3.3.2.

    The paper falls back to the reference; the mixture with a = 0.5 is what the released code does. The KL is exact
    unless `monte_carlo` says from how many sampled tokens to estimate it (the paper: 1,000). A b below 0 is the policy.
    """
    if math.isnan(b):
        raise InputError("KL threshold: b is not a number; give nats, say 0.1")
    if monte_carlo is not None and monte_carlo < 1:
        raise InputError(f"KL threshold: {monte_carlo} samples estimate nothing; give 1000, or none for the exact KL")
    return Strategy("threshold", float(b), fallback, monte_carlo)


def parse(name: str) -> Strategy:
    """The strategy that goes by `name`; an unknown name is an `InputError` that lists the forms."""
    match = _NAME.fullmatch(name)
    try:
        if match and match["b"]:
            samples = int(match["samples"]) if match["samples"] else None
            fallback: Fallback = "mixture" if match["mixture"] else "reference"
            return kl_threshold(float(match["b"]), fallback=fallback, monte_carlo=samples)
        if match and not (match["mixture"] or match["samples"]):
            if match["a"]:
                return mixing(float(match["a"]))
            return length_control(float(match["t"])) if match["t"] else Strategy(match["kind"])  # type: ignore[arg-type]
    except ValueError:
        pass
    raise InputError(
        f"'{name}' is no strategy; allowed: reference, policy, mix0.50, length8, threshold0.1, threshold0.1-mixture, "
        "threshold0.1-mc1000"
    )


@dataclass(frozen=True)
class Rules:
    """The general form of many strategies, one entry a row: float64 [rows] each."""

    high: Floats
    low: Floats
    last: Floats
    floor: Floats

    @classmethod
    def of(cls, strategies: Sequence[Strategy]) -> Rules:
        """One row for each of `strategies`."""
        columns = np.array([_rule(strategy) for strategy in strategies], dtype=np.float64).reshape(-1, 4).T
        return cls(*columns)

    def take(self, rows: NDArray[np.int64]) -> Rules:
        """The rules of some rows."""
        return Rules(self.high[rows], self.low[rows], self.last[rows], self.floor[rows])

    @property
    def compares(self) -> NDArray[np.bool_]:
        """Rows whose coefficient depends on the KL."""
        return self.floor > -np.inf


def _rule(strategy: Strategy) -> tuple[float, float, float, float]:
    match strategy.kind:
        case "reference":
            return 0.0, 0.0, math.inf, -math.inf
        case "policy":
            return 1.0, 1.0, math.inf, -math.inf
        case "mixing":
            return strategy.parameter, strategy.parameter, math.inf, -math.inf
        case "length":
            return 1.0, 0.0, strategy.parameter, -math.inf
        case "threshold":
            return 1.0, 0.5 if strategy.fallback == "mixture" else 0.0, math.inf, strategy.parameter


def coefficient(rules: Rules, step: NDArray[np.int64] | int, kl: Floats) -> Floats:
    """a of each row, [rows], at 1-based `step` (one, or one a row), where KL(policy || reference) is `kl` [rows]."""
    return np.where((step <= rules.last) & (kl > rules.floor), rules.high, rules.low)
