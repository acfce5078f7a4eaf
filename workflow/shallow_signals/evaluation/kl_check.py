"""KL by position on planted data: highest where the signal was planted."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from shallow_signals.files import InputError


def check_kl(figure3: pd.DataFrame, profiles: Mapping[str, str]) -> pd.DataFrame:
    """Hold the rows of `evaluation.kl_by_position`, with a `label`, against the planted `profiles` (label to profile).

    On the policy's own samples, the KL of the first third minus that of the last lies above zero, interval and all,
    where the signal is in front, and below zero where it is at the back. One row a label (label, profile, difference,
    low, high, holds). Raises `InputError` where one does not hold or there is none, and `ValueError` where a label has
    no such row.
    """
    if not profiles:
        raise InputError("checks: 'kl' has nothing to check: figure3 shows no policy of a planted front or back world")
    rows = []
    for label, profile in profiles.items():
        where = (figure3["label"] == label) & (figure3["text"] == "own") & (figure3["axis"] == "difference")
        if where.sum() != 1:
            raise ValueError(f"{label}: {where.sum()} rows with the difference of thirds, expected one")
        found = figure3[where].iloc[0]
        rows.append(
            {"label": label, "profile": profile, "difference": found["kl"], "low": found["low"], "high": found["high"]}
        )
    frame = pd.DataFrame(rows)
    front = frame["profile"] == "front"
    frame["holds"] = (frame["low"] > 0).where(front, frame["high"] < 0)
    if not frame["holds"].all():
        said = "; ".join(
            f"{row.label} ({row.profile}): {row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"
            for row in frame[~frame["holds"]].itertuples()
        )
        raise InputError(f"KL of the first third minus that of the last is not as planted: {said}")
    return frame
