"""The names of truncations: what part of each response (or which pairs) a training set keeps.

| name           | keeps                                                                     |
|----------------|---------------------------------------------------------------------------|
| `full`         | everything                                                                |
| `head50`       | the first 50% of each response's own tokens; likewise `tail50`, `window50`|
| `head128tok`   | the first 128 tokens; likewise `tail128tok`, `window128tok`               |
| `head50-char`  | the first 50% of the characters (the released code's unit)                |
| `head400chars` | the first 400 characters                                                  |
| `min_length`   | of both responses as many first tokens as the shorter one has             |
| `topshare50`   | the half of the tokens with the largest |log-ratio| (scoring only)        |
| `pairs50`      | full responses, but only as many pairs as hold the tokens of `head50`     |
| `half1`        | full responses, one half of the pairs; `half2` the other half             |
| `shuffled3`    | full responses with the labels of shuffle number 3 (negative control)     |
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Kind = Literal["full", "cut", "min_length", "topshare", "pairs", "half", "shuffled"]
HALVES = ("half1", "half2")
Side = Literal["head", "tail", "window"]
Unit = Literal["token", "char"]

_CUT = re.compile(r"(?P<side>head|tail|window)(?P<n>[1-9][0-9]*)(?P<kind>|tok|-char|chars)")
_NUMBERED = re.compile(r"(?P<kind>topshare|pairs|shuffled)(?P<n>[1-9][0-9]*)")
# One pattern for the workflow's `{truncation}` wildcard.
PATTERN = (
    r"full|min_length|half[12]|(?:head|tail|window)[1-9][0-9]*(?:tok|-char|chars)?"
    r"|(?:topshare|pairs|shuffled)[1-9][0-9]*"
)


@dataclass(frozen=True)
class Truncation:
    """A parsed truncation name. Exactly one of `ratio` and `length` is set for a cut."""

    name: str
    kind: Kind
    side: Side = "head"
    unit: Unit = "token"
    ratio: Fraction | None = None
    length: int | None = None
    number: int = 0  # of a shuffle or a half

    @property
    def keeps_text(self) -> bool:
        """True where each response is kept whole."""
        return self.kind in ("full", "pairs", "half", "shuffled")


def parse(name: str) -> Truncation:
    """Parse a truncation name; raise `ValueError` that lists the forms when it has none of them."""
    if name == "full":
        return Truncation(name, "full")
    if name == "min_length":
        return Truncation(name, "min_length")
    if name in HALVES:
        return Truncation(name, "half", number=int(name[-1]))
    if match := _CUT.fullmatch(name):
        side: Side = match["side"]  # type: ignore[assignment]
        unit: Unit = "char" if "char" in match["kind"] else "token"
        n = int(match["n"])
        if match["kind"] in ("tok", "chars"):
            return Truncation(name, "cut", side, unit, length=n)
        if n <= 100:
            return Truncation(name, "cut", side, unit, ratio=Fraction(n, 100))
    if match := _NUMBERED.fullmatch(name):
        kind: Kind = match["kind"]  # type: ignore[assignment]
        n = int(match["n"])
        if kind == "shuffled":
            return Truncation(name, kind, number=n)
        if n <= 100:
            return Truncation(name, kind, ratio=Fraction(n, 100))
    raise ValueError(
        f"'{name}' is no truncation; allowed: full, min_length, head50 / tail50 / window50 (1-100%), head128tok, "
        "head50-char, head400chars, topshare50, pairs50, half1, half2, shuffled1"
    )
