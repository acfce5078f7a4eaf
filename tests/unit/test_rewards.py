"""Rewards of generated texts, against one ordinary forward for each text and against the planted world's words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import checkpoints
from shallow_signals.config.sources import PlantedSource
from shallow_signals.evaluation.rewards import model_rewards, rewards
from shallow_signals.models.load import load_reward_model, load_tokenizer

PROMPTS = [[{"role": "user", "content": text}] for text in ("Hello", "How do I bake bread?", "Hello", "Hello")]
RESPONSES = ["The quick brown fox.", "Mix flour and water.\nWait 🙂", "", "No"]
CLOSING = {"chatml": "<|im_end|>\n", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>\n"}


@pytest.fixture(scope="module", params=["chatml", "llama3", "gemma"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, checkpoints.reward(folder / "reward", getattr(checkpoints, request.param)(folder / "base"))


def alone(folder: Path, closing: str, longest: int | None = None) -> list[float]:
    """Each text rendered by the template and read by itself, at its last token."""
    tokenizer, model = load_tokenizer(folder), load_reward_model(folder)
    found = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
        for text in (response, closing):
            ids = ids + tokenizer(text, add_special_tokens=False).input_ids
        if longest is not None and len(ids) > longest:
            head = ids[:1] if folder.parent.name.startswith(("llama3", "gemma")) else []  # ChatML has no BOS
            ids = head + ids[len(ids) - longest + len(head) :]
        with torch.no_grad():
            hidden = model.model(input_ids=torch.tensor([ids])).last_hidden_state
            found.append(float((hidden @ model.score.weight.T)[0, -1, 0]))
    return found


@pytest.mark.parametrize("end_of_turn", ["keep", "drop"])
def test_each_response_scores_as_if_read_alone(family: tuple[str, Path], end_of_turn: str) -> None:
    name, folder = family
    closing = CLOSING[name] if end_of_turn == "keep" else ""
    found = model_rewards(folder, PROMPTS, RESPONSES, max_length=2048, end_of_turn=end_of_turn, compute="float32")  # type: ignore[arg-type]
    np.testing.assert_allclose(found, alone(folder, closing), atol=1e-4)
    if end_of_turn == "keep":  # the control: texts left open score otherwise
        assert np.abs(found - np.array(alone(folder, ""))).max() > 1e-2


def test_an_overlong_text_loses_its_beginning(family: tuple[str, Path]) -> None:
    name, folder = family
    found = model_rewards(folder, PROMPTS, RESPONSES, max_length=24, compute="float32")
    np.testing.assert_allclose(found, alone(folder, CLOSING[name], longest=24), atol=1e-4)


def test_a_model_without_bos_reads_none(tmp_path: Path) -> None:
    folder = checkpoints.reward(tmp_path / "reward", checkpoints.llama3(tmp_path / "base"))
    with_bos, without = (
        model_rewards(folder, PROMPTS, RESPONSES, bos=bos, max_length=2048, compute="float32")
        for bos in ("auto", "never")
    )
    assert np.abs(with_bos - without).min() > 1e-4


def test_the_planted_truth_is_read_from_words() -> None:
    """Closed form: uniform weights 1/sqrt(n), so n good sentences are worth sqrt(n), and bad ones the opposite."""
    source = PlantedSource(profile="uniform", pairs=1, test_pairs=1, seed=0)
    good, bad = "The good ship runs quite well.", "The bad ship runs quite badly."
    texts = [good, f"{good} {good} {good} {good}", f"{good} {bad}", f"{bad} {bad} {bad} {bad}"]
    judge = {"kind": "planted", "source": source.model_dump()}
    found = rewards(judge, None, [[{"role": "user", "content": "?"}]] * 4, texts)
    np.testing.assert_allclose(found, [1, 2, 0, -2], atol=1e-12)
