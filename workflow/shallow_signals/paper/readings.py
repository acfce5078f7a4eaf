"""What the results say, in sentences: each is made from a table's CSV file, and every number in it stands there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from shallow_signals.evaluation.dominance import AT_THIS_KL

CLOSE = 0.02  # "close to its final value", of an accuracy


def benchmark(frame: pd.DataFrame) -> Iterator[str]:
    """Tables 1 and 4: the total of models trained on full responses against those trained on parts."""
    for group, part in _groups(frame, "group"):
        total = part[part["row"].str.startswith("Total")]
        full = total[total["name"] == "full"]
        if full.empty or pd.isna(full["value"].iloc[0]):
            yield f"**{group}**: no total for the model of full responses."
            continue
        rest = total[total["name"] != "full"].dropna(subset=["value", "difference"])
        beyond = rest[(rest["difference_high"] < 0) | (rest["difference_low"] > 0)]
        named = full["row"].iloc[0].removeprefix("Total").lstrip(", ") or "all sections"
        text = f"**{group}** ({named}): {_score(full.iloc[0])} for models of whole responses"
        head = rest[rest["name"] == "head50"]
        if not head.empty:
            text += f", {_score(head.iloc[0])} for their first half (difference {_difference(head.iloc[0])})"
        yield f"{text}. {len(beyond)} of {len(rest)} other columns differ from the first beyond their interval."


def heldout(frame: pd.DataFrame) -> Iterator[str]:
    """Table 2 and the controls' accuracies: head against full, tested on what was kept."""
    kept = frame[frame["tested_on"] == "kept"]
    for group, part in _groups(kept, "group"):
        full, head = part[part["name"] == "full"], part[part["name"] == "head50"]
        if full.empty or head.empty:
            continue
        yield (
            f"**{group}**: {_score(full.iloc[0])} for whole responses; the first half, tested on first halves, "
            f"{_score(head.iloc[0])} (difference {_difference(head.iloc[0])})."
        )


def win_rates(frame: pd.DataFrame) -> Iterator[str]:
    """Table 3: the policy of whole responses against the model that it started from, and against those of parts."""
    for (group, metric), part in frame.groupby(["group", "row"], sort=False):
        rates = part.dropna(subset=["value", "low"])
        full, base, head = (rates[rates["name"] == name] for name in ("full", "base", "head50"))
        if full.empty:
            continue
        text = f"**{group}**, {metric}: {_percent(full.iloc[0])} for the policy of whole responses"
        if not base.empty:
            text += f", {_percent(base.iloc[0])} for the model that it started from"
        if not head.empty:
            text += f", {_percent(head.iloc[0])} for the policy of first halves"
            text += f" (difference {_percent(head.iloc[0], 'difference', '+')})"
        rest = rates[~rates["name"].isin(["full", "base"])]
        beyond = rest[(rest["difference_high"] < 0) | (rest["difference_low"] > 0)]
        yield f"{text}. {len(beyond)} of {len(rest)} other policies differ from the first beyond their interval."


def controls(frame: pd.DataFrame) -> Iterator[str]:
    """The controls: what each truncation's model gets right on what it keeps, and the gap to the head of equal size."""
    for group, part in _groups(frame, "group"):
        said = []
        for label, rows in _groups(part, "row"):
            kept = rows[rows["column"] == "tested on kept"].dropna(subset=["value"])
            gap = rows[rows["column"] == "minus head of equal size, kept"].dropna(subset=["value"])
            if kept.empty:
                continue
            text = f"{label} {_score(kept.iloc[0])}"
            if not gap.empty:
                text += f" ({_signed(gap.iloc[0])} against the head)"
            said.append(text)
        if said:
            yield f"**{group}**, tested on what training kept: " + "; ".join(said) + "."


def verdicts(frame: pd.DataFrame) -> Iterator[str]:
    """Early, everywhere, late or length, by instrument; and what to make of a disagreement."""
    for group, part in _groups(frame, "group"):
        said = list(dict.fromkeys(part["row"]))
        yield f"**{group}**: " + "; ".join(said) + "."
        verdicts = [label.split(": ", 1)[1] for label in said]
        shown = {verdict.removeprefix("undecided (this run: ").removesuffix(")") for verdict in verdicts}
        if len(shown) == 1 and len(set(verdicts)) > 1:
            yield "They point the same way; of the trained models, which have too few seeds, this is no verdict yet."
        elif len(shown) > 1:
            yield (
                "The instruments do not say the same. The probe reads every pair and sees only which words occur; the "
                "reward models are trained anew on each part, from few pairs; the implicit reward is one policy, "
                "trained on whole responses and then read at parts of them, so that its tail is judged with the head "
                "in view."
            )


def implicit(frame: pd.DataFrame) -> Iterator[str]:
    """Figures 2 and 5: where the accuracy of the implicit reward comes to its final value."""
    for label, part in _groups(frame, "label"):
        head = part[(part["axis"] == "ratio") & (part["curve"] == "head")].sort_values("x")
        last = head.iloc[-1]
        text = f"**{label}** ({last['n']:,} pairs): {_accuracy(last)} on whole responses; {_settled(head, 'x')}"
        if last["high"] < 0.5:
            text += ". Right less than half the time: the policy learnt to prefer what people here reject"
        for curve in ("tail", "min_length"):
            row = part[(part["axis"] == "ratio") & (part["curve"] == curve) & (part["x"] == 50)]
            if not row.empty:
                name = {"tail": "The last half", "min_length": "Halves of the shorter one's length"}[curve]
                gap = _interval(row.iloc[0], "to_head", sign="+")
                text += f". {name}: {_accuracy(row.iloc[0])}, {gap} against the first half"
        longer = part[part["curve"] == "longer"]
        if not longer.empty:
            text += f". The longer one wins {_accuracy(longer.iloc[0])}"
        shuffled = part[part["curve"] == "shuffled"].dropna(subset=["low"])
        if not shuffled.empty:
            mean = shuffled.iloc[0]
            text += f". Trained on shuffled labels: {_accuracy(mean)}, mean of {mean['seeds']} shuffles"
        yield f"{text}."


def reward_by_cut(frame: pd.DataFrame) -> Iterator[str]:
    """The reward models of whole responses and of first halves, read whole and to the half."""
    for label, part in _groups(frame, "label"):
        tested = part[part["test_set"] == part["test_set"].iloc[0]]  # what the figure shows
        for truncation, name in (("full", "whole responses"), ("head50", "first halves")):
            curve = tested[tested["truncation"] == truncation].sort_values("kept_percent")
            if curve.empty or curve["kept_percent"].iloc[-1] < 100:
                continue
            last, half = curve.iloc[-1], curve[curve["kept_percent"] == 50]
            text = f"**{label}**, trained on {name} ({last['n']:,} pairs): {_accuracy(last)} read whole"
            text += f", {_settled(curve, 'kept_percent')}"
            if not half.empty:
                text += f"; {_accuracy(half.iloc[0])} read to the half"
            yield f"{text}."


def examples(frame: pd.DataFrame) -> Iterator[str]:
    """Figure 1: how far its examples are from an ordinary pair."""
    for label, part in _groups(frame, "label"):
        first = part.iloc[0]
        shares = part.groupby("kind", sort=False)["early_share"].first()
        said = " and ".join(f"{share:.3f} ({kind})" for kind, share in shares.items())
        yield (
            f"**{label}**: the part before the cut has {said} of the signal of the examples, which are the extremes of "
            f"{first['fitting']:,} pairs that have room; their median is {first['median']:.3f}."
        )


def position(frame: pd.DataFrame) -> Iterator[str]:
    """The signal by position: what the first half reaches, how concentrated the signal is, how often ranks shift."""
    for label, part in _groups(frame, "label"):
        half = part[(part["quantity"] == "log_ratio") & (part["measure"] == "share_reached")]
        half = half[(half["axis"] == "ratio") & (half["x"] == 50)]
        text = f"**{label}**: "
        if not half.empty and math.isnan(half.iloc[0]["low"]):
            text += "the mean margin is not above zero beyond its interval, so there is none to share out. "
        elif not half.empty:
            text += f"the first half of each response reaches {_score(half.iloc[0])} of the mean margin. "
        tokens, head = (_first(part, measure=name) for name in ("holding", "held_by_head"))
        text += (
            f"{tokens['x']:g}% of the |log-ratio| stand in {_score(tokens)} of the tokens; as many first tokens hold "
            f"{_score(head)}. "
        )
        whole, last = (_first(part, measure="shifted", axis=axis) for axis in ("whole", "last_quarter"))
        yield text + f"Rank above 3: {_score(whole)} of the tokens, {_score(last)} in the last quarter."


def kl(frame: pd.DataFrame) -> Iterator[str]:
    """Figure 3: the KL in the first and in the last third of the policy's own samples."""
    for label, part in _groups(frame, "label"):
        own = part[part["text"] == "own"]
        thirds = {axis: own[own["axis"] == axis] for axis in ("first_third", "last_third", "difference")}
        if any(rows.empty for rows in thirds.values()):
            continue
        first, last, gap = (rows.iloc[0] for rows in thirds.values())
        yield (
            f"**{label}** ({first['live']:,} samples): {_nats(first)} nats a token in the first third of a response, "
            f"{_nats(last)} in the last; difference {_nats(gap, '+')}."
        )


def tradeoff(frame: pd.DataFrame) -> Iterator[str]:
    """Figure 4: how far mixing goes from the reference, and what reward it finds there."""
    for label, part in _groups(frame, "label"):
        reference = _first(part, kind="reference")
        text = f"**{label}** ({reference['n']:,} prompts): reward {_reward(reference)} at the reference"
        policy, mixing = part[part["kind"] == "policy"], part[part["kind"] == "mixing"]
        if not policy.empty:
            text += f", {_reward(policy.iloc[0])} at the policy, {_interval(policy.iloc[0], 'kl')} nats a response away"
        if not mixing.empty:
            far = mixing.sort_values("kl").iloc[-1]
            text += f". Mixing goes as far as {_interval(far, 'kl')} nats (a = {far['parameter']:g}), to {_reward(far)}"
        yield f"{text}. What length control and the KL threshold add is a matter of differences at one KL: see above."


def dominance(frame: pd.DataFrame) -> Iterator[str]:
    """Figure 4: the controls against mixing at the same KL, and mixing against policies trained again."""
    for label, part in _groups(frame, "label"):
        controls, again = part[part["kind"] == "control"], part[part["kind"] == "retrained"]
        said = controls["verdict"].value_counts()
        counts = ", ".join(f"{said.get(word, 0)} {word}" for word in ("above", "below", "undecided", "outside"))
        total = f"{len(controls)} points of length control and KL threshold"
        yield f"**{label}**: of {total}, {counts} the mixing baseline."
        for strategy, rows in _groups(again[again["against"] != AT_THIS_KL], "strategy"):
            gaps = (
                f"{row['quantity']} {row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
                for _, row in rows.iterrows()
            )
            yield f"`{strategy}`, trained again, minus {rows['against'].iloc[0]}: {', '.join(gaps)}."


def probe(frame: pd.DataFrame) -> Iterator[str]:
    """The probe on whole responses, on first and last halves, and on lengths alone."""
    for split, part in _groups(frame, "split"):
        full = _first(part, train_side="full", test="full")
        length = _first(part, train_side="length", test="length")
        text = f"{full['n']:,} pairs, {split.replace('_', ' ')}: {_accuracy(full)}; length alone {_accuracy(length)}"
        for side, name in (("head", "first half"), ("tail", "last half")):
            rows = part[(part["train_side"] == side) & (part["ratio"] == 50) & (part["test"] == "kept")]
            if not rows.empty:
                text += f"; {name} {_accuracy(rows.iloc[0])}"
        yield f"{text}."


def _groups(frame: pd.DataFrame, column: str) -> Iterator[tuple[str, pd.DataFrame]]:
    for name in dict.fromkeys(frame[column]):
        yield str(name), frame[frame[column] == name]


def _first(frame: pd.DataFrame, **wanted: Any) -> Any:
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    return frame.iloc[0]


def _settled(curve: pd.DataFrame, x: str) -> str:
    """From which x on a curve, sorted by it, stays close to its last accuracy."""
    far = curve[(curve["accuracy"] - curve["accuracy"].iloc[-1]).abs() > CLOSE][x].max()
    reached = curve[x].min() if math.isnan(far) else curve[curve[x] > far][x].min()
    return f"within {100 * CLOSE:g} points of that from {reached:g}% on"


def _reward(row: Any) -> str:
    return _interval(row, "reward")


def _nats(row: Any, sign: str = "") -> str:
    return f"{row['kl']:{sign}.3f} [{row['low']:{sign}.3f}, {row['high']:{sign}.3f}]"


def _score(row: Any) -> str:
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _percent(row: Any, name: str = "value", sign: str = "") -> str:
    prefix = "" if name == "value" else f"{name}_"
    return f"{row[name]:{sign}.1f} [{row[f'{prefix}low']:{sign}.1f}, {row[f'{prefix}high']:{sign}.1f}]"


def _accuracy(row: Any) -> str:
    return _interval(row, "accuracy")


def _interval(row: Any, name: str, sign: str = "") -> str:
    prefix = "" if name == "accuracy" else f"{name}_"
    return f"{row[name]:{sign}.3f} [{row[f'{prefix}low']:{sign}.3f}, {row[f'{prefix}high']:{sign}.3f}]"


def _signed(row: Any) -> str:
    return f"{row['value']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"


def _difference(row: Any) -> str:
    verdict = f", {row['verdict']}" if isinstance(row["verdict"], str) and row["verdict"] else ""
    return f"{_interval(row, 'difference', '+')}{verdict}"
