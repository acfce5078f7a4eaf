"""Rewards of generated responses: the planted world's truth, or a reward model's scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shallow_signals.config.sources import PlantedSource
from shallow_signals.data.pairs import Message
from shallow_signals.data.planted import true_reward

Doubles = NDArray[np.float64]


def rewards(
    judge: Mapping[str, Any], folder: Path | None, prompts: Sequence[Sequence[Message]], responses: Sequence[str]
) -> Doubles:
    """Rewards [n] of `responses` to `prompts` by a judge as the workflow describes it.

    `judge` is {"kind": "planted", "source": a planted source}, or {"kind": "model"} with the keywords of
    `model_rewards`, whose checkpoint is `folder`.
    """
    arguments = dict(judge)
    if arguments.pop("kind") == "planted":
        source = PlantedSource.model_validate(arguments["source"])
        return np.array([true_reward(text, source) for text in responses], dtype=np.float64)
    if folder is None:
        raise ValueError("a reward model needs its folder")
    return model_rewards(folder, prompts, responses, **arguments)


def model_rewards(
    folder: Path,
    prompts: Sequence[Sequence[Message]],
    responses: Sequence[str],
    *,
    bos: Literal["auto", "never"] = "auto",
    max_length: int,
    end_of_turn: Literal["keep", "drop"] = "keep",
    compute: Literal["auto", "float32", "bfloat16"] = "auto",
) -> Doubles:
    """Scores [n] of a reward model, each response closed as the model was trained to see it.

    Texts are put through the model's own chat template and cut on the left to `max_length` tokens; `bos` "never" leaves
    the beginning-of-sequence token out (FsfairX was trained without it). Responses to one prompt share its reading. An
    empty response is read at its closing, or, with the end of turn dropped, at the end of the prompt.
    """
    from shallow_signals.evaluation.layouts import Layout
    from shallow_signals.evaluation.readings import RewardReader, read_layout, token_bar
    from shallow_signals.models.templates import prompt_ids, prompt_text, read_template

    reader = RewardReader(folder, compute)
    template = read_template(reader.tokenizer, bos)
    layout = Layout(template.closing_ids if end_of_turn == "keep" else (), max_length, reader.bos_id)
    by_prompt: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_prompt.setdefault(prompt_text(reader.tokenizer, template, prompt), []).append(index)
    texts = [text.strip() if template.strips else text for text in responses]
    order: list[int] = []
    for prompt_tokens, members in zip(
        prompt_ids(reader.tokenizer, template, list(by_prompt)), by_prompt.values(), strict=True
    ):
        tokens = reader.tokenizer([texts[index] for index in members], add_special_tokens=False)["input_ids"]
        layout.add_responses(len(order), prompt_tokens, tokens)
        order += members
    with token_bar(f"rewards of {len(order)} responses") as progress:
        found = read_layout(reader.model, layout, reader.token_budget, reader.pad_id, progress)
    scores = np.empty(len(order))
    for number, index in enumerate(order):
        scores[index] = found[number, 0, 0]
    return scores
