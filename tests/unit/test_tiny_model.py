"""The demo's base model: its tokenizer's units, its template, and that it has learned the world it was trained on."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from shallow_signals.config.sources import TinyModel
from shallow_signals.data import planted
from shallow_signals.models.tiny import train_tiny_model, train_tokenizer

PROMPT = [{"role": "user", "content": "Tell me about the old ship at night."}]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A model of 2,000 texts: half of the demo's, to be quick."""
    folder = tmp_path_factory.mktemp("tiny")
    return folder, train_tiny_model(TinyModel(texts=2000, epochs=2, seed=11), folder)


@pytest.fixture(scope="module")
def tokenizer(trained: tuple[Path, dict[str, Any]]) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(trained[0])


@pytest.fixture(scope="module")
def samples(trained: tuple[Path, dict[str, Any]], tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Responses to one prompt, sampled at temperature 1; only those that ended their turn."""
    model = AutoModelForCausalLM.from_pretrained(trained[0])
    prompt = tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    torch.manual_seed(0)
    with torch.inference_mode():
        ids = model.generate(**prompt, do_sample=True, top_k=0, max_new_tokens=120, num_return_sequences=200)
    new = ids[:, prompt["input_ids"].shape[1] :]
    ended = [row for row in new.tolist() if tokenizer.eos_token_id in row]
    assert len(ended) > 190
    return [tokenizer.decode(row[: row.index(tokenizer.eos_token_id)]) for row in ended]


def entropy_per_token() -> float:
    """Nats per token of response and closing of a judge that knows the world: what no model's expected loss beats."""
    sentence = sum(
        math.log(n)
        for n in (
            len(planted.DETERMINERS),
            2 * len(planted.GOOD_ADJECTIVES),  # quality and word
            len(planted.TOPICS[0]),  # the prompt names the topic
            len(planted.VERBS),
            len(planted.DEGREES),
            len(planted.GOOD_ADVERBS),  # the adjective has shown the quality
        )
    )
    sentences = sum(planted.SENTENCE_COUNTS) / 3
    return (math.log(3) + sentences * sentence) / (7 * sentences + 2)


def test_loss_is_near_the_worlds_entropy(trained: tuple[Path, dict[str, Any]]) -> None:
    loss, floor = trained[1]["loss"], entropy_per_token()
    assert floor == pytest.approx(1.581, abs=0.001)
    # A model that has not learned that quality words agree loses ln 2 in 7 tokens: it fails.
    assert floor - 0.01 < loss < floor + 0.06 < floor + math.log(2) / 7


def test_samples_are_sentences_of_the_world(samples: list[str]) -> None:
    def slot(word: str) -> str:
        word = word.removesuffix(".")
        groups = {
            "d": [w.capitalize() for w in planted.DETERMINERS],
            "+a": planted.GOOD_ADJECTIVES,
            "-a": planted.BAD_ADJECTIVES,
            "n": planted.TOPICS[0],
            "v": planted.VERBS,
            "g": planted.DEGREES,
            "+b": planted.GOOD_ADVERBS,
            "-b": planted.BAD_ADVERBS,
        }
        return next((name for name, words in groups.items() if word in words), "?")

    forms = Counter(tuple(slot(word) for word in sentence.split()) for text in samples for sentence in text.split(". "))
    good, bad = ("d", "+a", "n", "v", "g", "+b"), ("d", "-a", "n", "v", "g", "-b")
    mixed = ("d", "+a", "n", "v", "g", "-b"), ("d", "-a", "n", "v", "g", "+b")
    assert (forms[good] + forms[bad]) / forms.total() > 0.85
    assert sum(forms[form] for form in mixed) / forms.total() < 0.08  # by chance one half


def test_every_position_keeps_both_qualities(samples: list[str]) -> None:
    """Room for a policy to move in, everywhere: no sentence's quality is settled before it is trained."""
    for position in range(6):
        rows = [text.split(". ") for text in samples]
        adjectives = [
            row[position].split()[1] for row in rows if len(row) > position and len(row[position].split()) > 1
        ]
        signs = [planted.QUALITY_OF_WORD[word] for word in adjectives if word in planted.QUALITY_OF_WORD]
        assert 0.3 < signs.count(1) / len(signs) < 0.7


def test_lengths_are_mostly_those_of_the_world(samples: list[str]) -> None:
    counts = Counter(text.count(".") for text in samples)
    assert sum(counts[n] for n in planted.SENTENCE_COUNTS) / len(samples) > 0.6
    assert counts.most_common(1)[0][0] in planted.SENTENCE_COUNTS


def test_responses_are_seven_tokens_a_sentence(tokenizer: PreTrainedTokenizerFast) -> None:
    for prompt, response in planted.responses(99, 300):
        ids = tokenizer(response, add_special_tokens=False)["input_ids"]
        assert len(ids) == 7 * response.count(".")
        assert tokenizer.decode(ids) == response
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        head = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
        whole = tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]
        closing = [tokenizer.convert_tokens_to_ids("<|im_end|>"), *tokenizer("\n")["input_ids"]]
        assert whole == head + ids + closing and len(closing) == 2


def test_every_word_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    first = [word.capitalize() for word in planted.DETERMINERS]
    words = [
        *planted.QUALITY_OF_WORD,
        *planted.VERBS,
        *planted.DEGREES,
        *(n for topic in planted.TOPICS for n in topic),
    ]
    for text in [*first, *(f" {word}" for word in [*first, *words]), "."]:
        assert len(tokenizer(text)["input_ids"]) == 1, text
    assert len(tokenizer) <= 512


def test_a_smaller_vocabulary_does_not_have_them_all() -> None:
    small = train_tokenizer(planted.responses(0, 300), 350)
    assert any(len(small(f" {word}")["input_ids"]) > 1 for word in planted.QUALITY_OF_WORD)


def test_template_and_special_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [{"role": "system", "content": "Be kind."}, *PROMPT]
    assert tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nTell me about the old ship at night.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token) == ("<pad>", "<|im_end|>", None)
    assert tokenizer("The <|im_end|>")["input_ids"][-1] == tokenizer.eos_token_id
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_start|>")}) == 3


@pytest.mark.parametrize("text", ["Grüße, 世界 🙂", "a\n\nb  c\t", " it's 3.5 %"])
def test_any_text_survives(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_is_an_ordinary_checkpoint(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, facts = trained
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.model_type == "llama" and model.dtype == torch.float32
    assert model.num_parameters() == facts["parameters"] < 1_000_000
    assert set(facts) == {"tokens", "seconds", "loss", "parameters"}


def test_same_seed_same_weights(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train_tiny_model(TinyModel(texts=100, epochs=1, seed=seed, hidden=32, layers=1), tmp_path / name)
    one, same, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert one == same != other
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()
