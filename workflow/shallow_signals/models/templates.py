"""Chat templates: how a prompt is put to a model, and which tokens close a response."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shallow_signals.data.pairs import Message
from shallow_signals.files import InputError

Bos = Literal["auto", "never"]

_SENTINEL = "aSentinelResponse"
_SYSTEM = "aSentinelSystem"


@dataclass(frozen=True)
class Template:
    """What a tokenizer's chat template puts around and does to a response."""

    closing_text: str  # everything rendered after a response
    closing_ids: tuple[int, ...]
    strips: bool  # white space around a response is removed
    has_system: bool  # a system turn is rendered; else it is folded into the first user turn
    bos_text: str  # removed from the front of a rendering; empty where the template writes no BOS
    bos_ids: tuple[int, ...]  # put first: one id or none


def read_template(tokenizer: Any, bos: Bos) -> Template:
    """Find out by rendering conversations whose response is a known word.

    With `bos` "auto" a prompt starts with BOS exactly once if the template or the tokenizer's own post-processing adds
    one; with "never" it starts without. A token that opens every turn (SmolLM2 names `<|im_start|>` its BOS) is part of
    the turns and stays in either case. Raises `InputError` if the tokenizer has no chat template, or one whose
    rendering is not the rendering with the generation prompt, the response and then a constant closing.
    """
    name = getattr(tokenizer, "name_or_path", "") or "tokenizer"
    if not tokenizer.chat_template:
        raise InputError(f"{name}: chat_template is missing; use an instruction-tuned model or add a template")
    prompt: list[Message] = [{"role": "user", "content": "Hello"}]
    opening = _render(tokenizer, prompt, generate=True)
    whole = _render(tokenizer, [*prompt, {"role": "assistant", "content": _SENTINEL}])
    spaced = _render(tokenizer, [*prompt, {"role": "assistant", "content": f" \n{_SENTINEL}\n "}])
    if not whole.startswith(opening + _SENTINEL):
        raise InputError(
            f"{name}: chat_template renders a conversation that does not start with the prompt and its generation "
            "prompt, followed by the response; use a template that does"
        )
    closing = whole.removeprefix(opening + _SENTINEL)
    if spaced not in (whole, f"{opening} \n{_SENTINEL}\n {closing}"):
        raise InputError(f"{name}: chat_template removes only a part of the white space around a response")
    writes_bos, adds_bos = _bos(tokenizer)
    return Template(
        closing_text=closing,
        closing_ids=tuple(_ids(tokenizer, [closing])[0]),
        strips=spaced == whole,
        has_system=_has_system(tokenizer),
        bos_text=tokenizer.bos_token if writes_bos else "",
        bos_ids=(tokenizer.bos_token_id,) if bos == "auto" and (writes_bos or adds_bos) else (),
    )


def render_prompt(tokenizer: Any, messages: Sequence[Message], bos: Bos) -> list[int]:
    """Token ids of one prompt with its generation prompt; see `read_template` for BOS."""
    template = read_template(tokenizer, bos)
    return render_prompts(tokenizer, template, [messages])[0]


def render_prompts(tokenizer: Any, template: Template, prompts: Iterable[Sequence[Message]]) -> list[list[int]]:
    """The same of many prompts, read with one `template`."""
    return prompt_ids(tokenizer, template, [prompt_text(tokenizer, template, messages) for messages in prompts])


def prompt_text(tokenizer: Any, template: Template, messages: Sequence[Message]) -> str:
    """The rendering of a prompt with its generation prompt, without BOS; what the template refuses is an InputError."""
    turns = list(messages) if template.has_system else fold_system(messages)
    return _render(tokenizer, turns, generate=True).removeprefix(template.bos_text)


def conversation_text(tokenizer: Any, template: Template, messages: Sequence[Message], response: str) -> str:
    """The rendering of a prompt and its response with everything the template puts after it, without BOS."""
    turns = list(messages) if template.has_system else fold_system(messages)
    whole = _render(tokenizer, [*turns, {"role": "assistant", "content": response}])
    return whole.removeprefix(template.bos_text)


def prompt_ids(tokenizer: Any, template: Template, texts: list[str]) -> list[list[int]]:
    """Token ids of renderings (of prompts or conversations), BOS first where the template's reading says so."""
    return [[*template.bos_ids, *ids] for ids in _ids(tokenizer, texts)]


def end_ids(folder: Path, tokenizer: Any, template: Template) -> tuple[int, ...]:
    """Tokens that end a response of the checkpoint in `folder`.

    The one that ends its turn (the first of the closing's tokens that is no ordinary text), the tokenizer's end of text
    and what the checkpoint's generation_config.json names. Raises `InputError` where there is none of them: a response
    would never end.
    """
    added = set(tokenizer.get_added_vocab().values())
    turn = [token for token in template.closing_ids if token in added][:1]
    file = folder / "generation_config.json"
    named = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
    others = [tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])]
    found = tuple(dict.fromkeys([*turn, *(token for token in others if token is not None)]))
    if not found:
        raise InputError(
            f"{folder}: nothing ends a response, neither its chat_template nor an eos_token; add an eos_token"
        )
    return found


def fold_system(messages: Sequence[Message]) -> list[Message]:
    """Put each system turn in front of the next user turn ("system\\n\\nuser"); without one it becomes a user turn."""
    turns: list[Message] = []
    waiting: list[str] = []
    for turn in messages:
        if turn["role"] == "system":
            waiting.append(turn["content"])
        elif turn["role"] == "user" and waiting:
            turns.append({"role": "user", "content": "\n\n".join([*waiting, turn["content"]])})
            waiting = []
        else:
            turns.append(turn)
    if waiting:
        turns.append({"role": "user", "content": "\n\n".join(waiting)})
    return turns


def _render(tokenizer: Any, messages: list[Message], *, generate: bool = False) -> str:
    from jinja2 import TemplateError

    try:
        # A batch of one: a lone empty conversation would be taken for an empty batch.
        return str(tokenizer.apply_chat_template([messages], tokenize=False, add_generation_prompt=generate)[0])
    except TemplateError as error:
        raise InputError(f"chat_template refuses the conversation: {error}") from error


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Ids of each text; one that occurs several times, as prompts do, is tokenised once."""
    if not texts:
        return []
    unique = list(dict.fromkeys(texts))
    ids = tokenizer(unique, add_special_tokens=False, verbose=False)["input_ids"]
    of_text = dict(zip(unique, ids, strict=True))
    return [of_text[text] for text in texts]


def _bos(tokenizer: Any) -> tuple[bool, bool]:
    """Whether the template writes BOS at the front (and nowhere else), and whether the tokenizer adds it by itself."""
    if tokenizer.bos_token is None:
        return False, False
    turns: list[Message] = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Bye"},
    ]
    rendering = _render(tokenizer, turns, generate=True)
    opens_turns = rendering.count(tokenizer.bos_token) > 1
    writes = rendering.startswith(tokenizer.bos_token) and not opens_turns
    adds = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return writes, adds and not opens_turns


def _has_system(tokenizer: Any) -> bool:
    """Whether a system turn is rendered: a template may refuse it, and may drop it without a word."""
    turns: list[Message] = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": "Hello"}]
    try:
        return _SYSTEM in _render(tokenizer, turns, generate=True)
    except InputError:
        return False
