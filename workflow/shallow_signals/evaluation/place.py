"""What intervals say of the place of a preference signal: one rule for all instruments."""

from __future__ import annotations

from typing import Literal

Place = Literal["early", "everywhere", "late", "length", "undecided"]
Interval = tuple[float, float]

PLACES: tuple[Place, ...] = ("early", "everywhere", "late", "length", "undecided")


def place_of(
    whole: Interval, longer: Interval, longer_minus_whole: Interval, head_minus_tail: Interval | None, margin: float
) -> Place:
    """Where the signal sits, by paired intervals; the first that applies:

    * `undecided`: the model on whole responses is right less than half the time, interval and all: it has learnt
      something else than these labels.
    * `length`: "the longer one wins" (or the shorter one, if that was learnt) beats one half and is at most `margin`
      worse than the model on whole responses, interval and all. Where length does as well as the words, the words prove
      nothing about a place.
    * `undecided`: the model on whole responses does not beat one half.
    * `early` / `late`: head minus tail of equal size, each tested on what it keeps, lies above / below zero.
    * `everywhere`: that difference lies within `margin` of zero, on both sides.
    * `undecided`: anything else. Bounds that are NaN (no interval could be had) decide nothing.
    """
    if whole[1] < 0.5:
        return "undecided"
    if longer[0] > 0.5 and longer_minus_whole[0] > -margin:
        return "length"
    if not whole[0] > 0.5 or head_minus_tail is None:
        return "undecided"
    low, high = head_minus_tail
    if low > 0:
        return "early"
    if high < 0:
        return "late"
    return "everywhere" if low > -margin and high < margin else "undecided"
