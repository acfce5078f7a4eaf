"""Converters of data sets that hold ratings or votes, not pairs: openbmb/UltraFeedback and stanfordnlp/SHP."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

from shallow_signals.config.sources import HubSource
from shallow_signals.data.fields import Row, number, required, text
from shallow_signals.data.pairs import Message, Pair
from shallow_signals.data.quarantine import Filtered, Outcome, Rejected, Unusable, shown
from shallow_signals.files import InputError

_RATING = re.compile(r"[0-9]{1,2}")


class _Rated(NamedTuple):
    """A response with its rating; None stands for "N/A"."""

    response: str
    rating: int | None


def aspects_converter(source: HubSource) -> Callable[[Row], list[Outcome]]:
    """Every two completions of a row that differ in their rating of `source.aspect`; the margin is the difference.

    k completions give k(k-1)/2 outcomes: a pair, a tie, an unrated one or a rejection.
    """
    aspect = source.aspect
    if aspect is None:
        raise InputError(f"{source.repo}: the converter 'ultrafeedback_aspects' needs the key 'aspect'")

    def converter(row: Row) -> list[Outcome]:
        prompt = [Message(role="user", content=text(row, "instruction"))]
        completions = required(row, "completions")
        if not isinstance(completions, list):
            raise Unusable("wrong_type", f"'completions' must be a list, not {type(completions).__name__}")
        if len(completions) < 2:
            raise Unusable("missing_field", f"{len(completions)} of at least two completions")
        rated = [_rated(completion, aspect) for completion in completions]
        return [_compare(one, other, prompt, aspect) for one, other in combinations(rated, 2)]

    return converter


def _rated(completion: object, aspect: str) -> _Rated | Rejected:
    try:
        fields = _object(completion, "a completion")
        annotations = _object(required(fields, "annotations"), "'annotations'")
        rating = text(_object(required(annotations, aspect), f"'{aspect}'"), "Rating")
        response = text(fields, "response")
    except Unusable as error:
        return error.rejected
    if rating == "N/A":
        return _Rated(response, None)
    if not _RATING.fullmatch(rating):
        return Rejected("wrong_type", f"the rating {shown(rating)} of '{aspect}' is no whole number")
    return _Rated(response, int(rating))


def _object(value: object, name: str) -> Row:
    if not isinstance(value, dict):
        raise Unusable("wrong_type", f"{name} must be an object, not {type(value).__name__}")
    return value


def _compare(one: _Rated | Rejected, other: _Rated | Rejected, prompt: list[Message], aspect: str) -> Outcome:
    if isinstance(one, Rejected):
        return one
    if isinstance(other, Rejected):
        return other
    if one.rating is None or other.rating is None:
        return Filtered("not_rated")
    if one.rating == other.rating:
        return Filtered("tie")
    better, worse = (one, other) if one.rating > other.rating else (other, one)
    return Pair(
        prompt=prompt,
        chosen=better.response,
        rejected=worse.response,
        margin=float(abs(one.rating - other.rating)),
        aspect=aspect,
    )


def shp_converter(source: HubSource, present: Sequence[str]) -> Callable[[Row], list[Outcome]]:
    """SHP: two comments on a post, `labels` 1 where A has the votes; kept where `score_ratio` is above the minimum.

    The cap of pairs per post needs all rows and is drawn later. Data without `score_ratio` is refused unless the
    minimum is 1, which every ratio of two different scores passes.
    """
    has_ratio = "score_ratio" in present
    if not has_ratio and source.min_score_ratio > 1:
        raise InputError(
            f"{source.repo}: no column 'score_ratio', so min_score_ratio {source.min_score_ratio:g} can't be applied; "
            "set it to 1.0 to keep all rows"
        )

    def converter(row: Row) -> list[Outcome]:
        label = required(row, "labels")
        if label not in (0, 1) or isinstance(label, bool):
            raise Unusable("wrong_type", f"'labels' must be 0 or 1, not {shown(label)}")
        first, second = text(row, "human_ref_A"), text(row, "human_ref_B")
        pair = Pair(
            prompt=[Message(role="user", content=text(row, "history"))],
            chosen=first if label == 1 else second,
            rejected=second if label == 1 else first,
            cluster=text(row, "post_id"),
        )
        if has_ratio:
            ratio = number(row, "score_ratio")
            if ratio is None:
                raise Unusable("missing_field", "'score_ratio'")
            if ratio <= source.min_score_ratio:
                return [Filtered("score_ratio")]
        return [pair]

    return converter
