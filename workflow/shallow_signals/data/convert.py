"""From a raw row to pairs. Converters are pure: a row in, a list of pairs or reasons out.

Each one reads the columns of one family of published data sets as they stand there; ratings and votes (UltraFeedback,
SHP) are in `convert_ratings`, what all of them share in `fields`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from shallow_signals.config.sources import Columns, HubSource
from shallow_signals.data.convert_ratings import aspects_converter, shp_converter
from shallow_signals.data.fields import Row, as_split, messages, number, require_columns, required, text, text_or_none
from shallow_signals.data.pairs import Message, Pair
from shallow_signals.data.quarantine import Filtered, Outcome, Rejected, Unusable

Converter = Callable[[Row], list[Outcome]]

_HH_MARKER = re.compile(r"\n\n(Human|Assistant):")


def convert(converter: Converter, row: object) -> list[Outcome]:
    """What a raw row gives: at least one pair, rejection or filter; never an exception."""
    if not isinstance(row, dict):
        return [Rejected("wrong_type", f"a row must be an object, not {type(row).__name__}")]
    try:
        return converter(row)
    except Unusable as error:
        return [error.rejected]


def hub_converter(source: HubSource, present: Sequence[str]) -> Converter:
    """The converter of a hub source whose rows have the columns `present`.

    Raises `InputError` naming a column that the converter needs and the data lacks.
    """
    needs, make = _HUB[source.converter]
    columns = mapped(source.columns) if source.converter == "columns" else needs
    require_columns(columns, present, f"{source.repo}: the converter '{source.converter}'")
    return make(source, present)


def offline_converter(source: HubSource, columns: Columns) -> Converter:
    """The converter of the file that stands in for a hub source.

    It reads plain columns; where the file still has Anthropic's raw strings they are parsed as the hub's are, so that
    both ways give the same pairs.
    """
    plain, raw = columns_converter(columns), _hh_converter(columns.chosen, columns.rejected)
    if source.converter != "hh_rlhf":
        return plain
    return lambda row: raw(row) if str(row.get(columns.chosen)).startswith("\n\nHuman:") else plain(row)


def mapped(columns: Columns) -> list[str]:
    """The columns that a mapping names."""
    return [name for name in columns.model_dump().values() if name is not None]


def message_lists(row: Row) -> list[Outcome]:
    """`chosen` and `rejected` are whole conversations that share all but the last turn.

    Where `score_chosen` and `score_rejected` are given, the margin is their difference and equal ones are a tie.
    """
    prompt, chosen, rejected = _conversations(messages(row, "chosen"), messages(row, "rejected"))
    scores = number(row, "score_chosen"), number(row, "score_rejected")
    margin = None
    if scores[0] is not None and scores[1] is not None:
        margin = scores[0] - scores[1]
        if margin == 0:
            return [Filtered("tie")]
    return [Pair(prompt=prompt, chosen=chosen, rejected=rejected, margin=margin)]


def rewardbench(row: Row) -> list[Outcome]:
    """RewardBench: three strings and the subset."""
    pair = Pair(
        prompt=[Message(role="user", content=text(row, "prompt"))],
        chosen=text(row, "chosen"),
        rejected=text(row, "rejected"),
        subset=text(row, "subset"),
    )
    return [pair]


def columns_converter(columns: Columns) -> Converter:
    """Plain columns by a mapping: prompt a string or a message list; responses strings or message lists."""

    def converter(row: Row) -> list[Outcome]:
        value = required(row, columns.prompt)
        prompt = [Message(role="user", content=value)] if isinstance(value, str) else messages(row, columns.prompt)
        responses = [_response(row, name, prompt) for name in (columns.chosen, columns.rejected)]
        pair = Pair(
            prompt=prompt,
            chosen=responses[0],
            rejected=responses[1],
            cluster=text_or_none(row, columns.cluster),
            subset=text_or_none(row, columns.subset),
            generator=text_or_none(row, columns.generator),
            margin=number(row, columns.margin) if columns.margin else None,
            split=as_split(row, columns.split),
        )
        return [pair]

    return converter


def _response(row: Row, name: str, prompt: list[Message]) -> str:
    """A response given as a string, or as a message list that ends in it (with or without the prompt before it)."""
    value = required(row, name)
    if isinstance(value, str):
        return value
    turns = messages(row, name)
    before, response = _split_last(turns, name)
    if before and before != prompt:
        raise Unusable("prompts_differ", f"the turns of '{name}' are not those of the prompt")
    return response


def _hh_converter(chosen: str, rejected: str) -> Converter:
    """Anthropic/hh-rlhf: each response is one string of Human and Assistant turns."""

    def converter(row: Row) -> list[Outcome]:
        prompt, good, bad = _conversations(
            _hh_turns(text(row, chosen), chosen), _hh_turns(text(row, rejected), rejected)
        )
        return [Pair(prompt=prompt, chosen=good, rejected=bad)]

    return converter


def _hh_turns(conversation: str, name: str) -> list[Message]:
    """The turns of a string `\\n\\nHuman: ...\\n\\nAssistant: ...`, each without the white space around it."""
    start, *parts = _HH_MARKER.split(conversation)
    if start.strip() or not parts:
        raise Unusable("unparsable", f"'{name}' does not begin with a turn of Human or Assistant")
    roles = {"Human": "user", "Assistant": "assistant"}
    speakers, contents = parts[::2], parts[1::2]
    return [Message(role=roles[who], content=content.strip()) for who, content in zip(speakers, contents, strict=True)]


def _conversations(chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], str, str]:
    """The shared prompt of two conversations and their last turns."""
    prompt, good = _split_last(chosen, "chosen")
    other, bad = _split_last(rejected, "rejected")
    if prompt != other:
        raise Unusable("prompts_differ", f"chosen has {len(prompt)} turns before its response, rejected {len(other)}")
    return prompt, good, bad


def _split_last(turns: list[Message], name: str) -> tuple[list[Message], str]:
    if not turns or turns[-1]["role"] != "assistant":
        raise Unusable("no_assistant_turn", f"'{name}' does not end in one")
    return turns[:-1], turns[-1]["content"]


# Needed columns, and how the converter is made of the source and the columns that are there.
_HUB: dict[str, tuple[list[str], Callable[[HubSource, Sequence[str]], Converter]]] = {
    "message_lists": (["chosen", "rejected"], lambda source, present: message_lists),
    "ultrafeedback_aspects": (["instruction", "completions"], lambda source, present: aspects_converter(source)),
    "shp": (["history", "human_ref_A", "human_ref_B", "labels", "post_id"], shp_converter),
    "rewardbench": (["prompt", "chosen", "rejected", "subset"], lambda source, present: rewardbench),
    "hh_rlhf": (["chosen", "rejected"], lambda source, present: _hh_converter("chosen", "rejected")),
    "columns": ([], lambda source, present: columns_converter(source.columns)),
}
