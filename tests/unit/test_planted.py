"""The planted world: its texts, its rewards and its labels, against an independent reading of them."""

from __future__ import annotations

import math
import random
import re
import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from shallow_signals.config.sources import PlantedSource
from shallow_signals.data import planted
from shallow_signals.data.pairs import Pair
from shallow_signals.files import InputError

PROFILES = ("front", "uniform", "back", "length")


def source(**changes: object) -> PlantedSource:
    return PlantedSource.model_validate({"profile": "front", "pairs": 2000, "test_pairs": 500, "seed": 7, **changes})


def signs(text: str) -> list[int]:
    """Qualities read word by word, insisting on the sentence's form: both quality words, and that they agree."""
    found = []
    for sentence in text.removesuffix(".").split(". "):
        determiner, adjective, noun, verb, degree, adverb = sentence.split(" ")
        good = adjective in planted.GOOD_ADJECTIVES
        assert adjective in (planted.GOOD_ADJECTIVES if good else planted.BAD_ADJECTIVES)
        assert adverb in (planted.GOOD_ADVERBS if good else planted.BAD_ADVERBS)
        assert determiner.lower() in planted.DETERMINERS and verb in planted.VERBS and degree in planted.DEGREES
        assert any(noun in topic for topic in planted.TOPICS)
        found.append(1 if good else -1)
    return found


def reward_by_hand(qualities: list[int], profile: str, decay: float) -> float:
    count = len(qualities)
    raw = {
        "front": [decay**s for s in range(count)],
        "back": [decay ** (count - 1 - s) for s in range(count)],
        "uniform": [1.0] * count,
        "length": [1.0] * count,
    }[profile]
    norm = math.sqrt(sum(w * w for w in raw))
    total = sum(w / norm * q for w, q in zip(raw, qualities, strict=True))
    if profile == "length":  # 6, 8, 10 sentences have mean 8 and variance 8/3
        return 0.3 * total + math.sqrt(0.91) * (count - 8) / math.sqrt(8 / 3)
    return total


def content(pair: Pair) -> str:
    return pair["prompt"][0]["content"]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("persistence", [0.0, 0.7])
def test_reward_is_read_back_exactly_and_is_the_planted_one(profile: str, persistence: float) -> None:
    world = source(profile=profile, persistence=persistence, pairs=400, test_pairs=100)
    for pair in planted.generate(world):
        read = [planted.true_reward(pair[side], world) for side in ("chosen", "rejected")]  # type: ignore[literal-required]
        assert read[0] - read[1] == pair["margin"]  # to the last bit
        by_hand = [reward_by_hand(signs(pair[side]), profile, world.decay) for side in ("chosen", "rejected")]  # type: ignore[literal-required]
        assert read == pytest.approx(by_hand, abs=1e-12)


def test_each_sentence_is_seven_tokens_with_quality_words_second_from_either_end() -> None:
    for _, response in planted.responses(3, 300):
        tokens = re.findall(r"[A-Za-z]+|\.", response)
        assert len(tokens) == planted.TOKENS_PER_SENTENCE * response.count(".")
        assert response.count(".") in planted.SENTENCE_COUNTS
        slots = {i % 7 for i, token in enumerate(tokens) if token in planted.QUALITY_OF_WORD}
        assert slots == set(planted.QUALITY_SLOTS)


def test_nouns_belong_to_the_topic_of_the_prompt() -> None:
    topic_of = {noun: index for index, topic in enumerate(planted.TOPICS) for noun in topic}
    for prompt, response in planted.responses(4, 300):
        [asked] = {topic_of[word] for word in re.findall("[a-z]+", prompt) if word in topic_of}
        assert {topic_of[word] for word in re.findall("[a-z]+", response) if word in topic_of} == {asked}


def test_word_sets_are_disjoint() -> None:
    sets = [
        planted.GOOD_ADJECTIVES,
        planted.BAD_ADJECTIVES,
        planted.GOOD_ADVERBS,
        planted.BAD_ADVERBS,
        planted.DETERMINERS,
        planted.VERBS,
        planted.DEGREES,
        *planted.TOPICS,
    ]
    words = [word for group in sets for word in group]
    assert len(words) == len(set(words))
    prompt_words = set(re.findall("[a-z]+", " ".join((*planted.FORMS, *planted.MODIFIERS, *planted.SETTINGS)).lower()))
    assert not prompt_words & set(planted.QUALITY_OF_WORD)


def test_same_seed_same_pairs_whatever_the_global_random_state() -> None:
    first = list(planted.generate(source()))
    np.random.seed(1)
    random.seed(1)
    assert list(planted.generate(source())) == first
    assert list(planted.generate(source(seed=8))) != first


def test_test_pairs_do_not_depend_on_the_number_of_training_pairs() -> None:
    def test_part(pairs: int) -> list[Pair]:
        return [pair for pair in planted.generate(source(pairs=pairs)) if pair["split"] == "test"]

    assert test_part(10) == test_part(2000)


def test_profiles_relabel_the_same_texts() -> None:
    front, back = (list(planted.generate(source(profile=profile))) for profile in ("front", "back"))
    assert [{p["chosen"], p["rejected"]} for p in front] == [{p["chosen"], p["rejected"]} for p in back]
    assert [p["chosen"] for p in front] != [p["chosen"] for p in back]


def test_splits_counts_and_prompts() -> None:
    pairs = [*planted.generate(source(aspect="honesty")), *planted.generate(source(seed=8))]
    assert Counter(pair["split"] for pair in pairs) == {"train": 4000, "test": 1000}
    assert {pair["aspect"] for pair in pairs[:2500]} == {"honesty"}
    train, test = ([content(p) for p in pairs if p["split"] == split] for split in ("train", "test"))
    assert not set(train) & set(test)  # over seeds too
    assert len(set(train[:2000])) > 0.9 * 2000
    texts = Counter(text for pair in pairs for text in (pair["chosen"], pair["rejected"]))
    assert max(texts.values()) == 1


def test_prompt_space_is_what_the_docs_say() -> None:
    everything = planted.instructions(0, 4608)
    assert len(set(everything)) == 4608
    with pytest.raises(ValueError, match="4608 test prompts, fewer than the 4609"):
        planted.instructions(0, 4609)
    assert {content(p) for p in planted.generate(source()) if p["split"] == "test"} <= set(everything)
    assert planted.instructions(1, 50) != planted.instructions(2, 50)
    assert planted.instructions(1, 50) == planted.instructions(1, 100)[:50]
    assert not set(everything) & {prompt for prompt, _ in planted.responses(0, 2000)}


@pytest.mark.parametrize("persistence", [0.0, 0.7])
def test_qualities_persist_as_asked(persistence: float) -> None:
    runs = [
        signs(p[side])  # type: ignore[literal-required]
        for p in planted.generate(source(persistence=persistence))
        for side in ("chosen", "rejected")
    ]
    same = [a == b for run in runs for a, b in pairwise(run)]
    expected = persistence + (1 - persistence) / 2
    assert abs(np.mean(same) - expected) < 4 * math.sqrt(0.25 / len(same))
    assert abs(np.mean([run[0] for run in runs])) < 4 / math.sqrt(len(runs))
    lengths = Counter(map(len, runs))
    assert all(abs(lengths[s] / len(runs) - 1 / 3) < 4 * math.sqrt(2 / 9 / len(runs)) for s in (6, 8, 10))


def _label_z(pairs: list[Pair], sharpness: float) -> float:
    """Standardised difference of the labels' agreement with the true reward and what Bradley-Terry expects."""
    margins = np.array([margin for pair in pairs if abs(margin := pair["margin"] or 0) > 1e-9])  # no ties
    expected = 1 / (1 + np.exp(-sharpness * np.abs(margins)))
    return float(((margins > 0) - expected).sum() / np.sqrt((expected * (1 - expected)).sum()))


@pytest.mark.parametrize("profile", PROFILES)
def test_labels_are_bradley_terry(profile: str) -> None:
    pairs = list(planted.generate(source(profile=profile, sharpness=2.0)))
    assert abs(_label_z(pairs, 2.0)) < 4
    assert abs(_label_z(pairs, 3.0)) > 4  # the check can tell sharpness 2 from 3


def test_weights_have_unit_square_and_mirror() -> None:
    for count in range(1, 11):
        front, back = (planted.weights(profile, count, 0.6) for profile in ("front", "back"))
        assert front @ front == pytest.approx(1)
        assert front[::-1] == pytest.approx(back)
        assert planted.weights("uniform", count, 0.6) == pytest.approx(count**-0.5)
    assert front[1:] / front[:-1] == pytest.approx(0.6)


def test_reward_of_broken_text() -> None:
    world = source(profile="uniform")
    good, bad, half = "The good ship runs so well.", "The bad ship runs so badly.", "The good ship runs so badly."
    assert planted.true_reward("", world) == 0
    assert planted.true_reward(" . .", world) == 0
    assert planted.true_reward(good, world) == 1
    assert planted.true_reward(half, world) == 0
    assert planted.true_reward("ship ship ship.", world) == 0
    assert planted.true_reward(f"{good} . {bad} {bad} {bad}", world) == pytest.approx(-2 / math.sqrt(4))
    assert planted.true_reward(f"{good} The good", world) == pytest.approx(2 / math.sqrt(2))  # unfinished, but shown
    assert planted.true_reward(" ".join([good] * 10 + [bad] * 5), world) == pytest.approx(10 / math.sqrt(10))
    assert planted.true_reward("Goods and wells.", world) == 0  # whole words only


@pytest.mark.parametrize("profile", PROFILES)
def test_benchmark_subsets_hold_what_they_say(profile: str) -> None:
    world = source(profile=profile, persistence=0.5, benchmark=True, test_pairs=252)
    pairs = list(planted.generate(world))
    assert [pair["split"] for pair in pairs] == ["test"] * 252
    counts = Counter(str(pair["subset"]) for pair in pairs)
    assert list(counts) == list(planted.BENCHMARK_SECTIONS) and sorted(counts.values()) == [50, 50, 50, 51, 51]
    assert set(planted.BENCHMARK_SECTIONS.values()) == {"Chat", "Chat Hard", "Safety", "Reasoning"}
    for pair in pairs:
        chosen, rejected = signs(pair["chosen"]), signs(pair["rejected"])
        gap = reward_by_hand(chosen, profile, 0.6) - reward_by_hand(rejected, profile, 0.6)
        assert gap > 0 and gap == pytest.approx(pair["margin"], abs=1e-12)
        third = len(chosen) // 3
        match pair["subset"]:
            case "planted-easy":
                assert gap > 1.5
            case "planted-close":
                assert gap < 0.5
            case "planted-longer-rejected":
                assert len(rejected) > len(chosen)
            case "planted-early":
                assert chosen[third:] == rejected[third:] and len(chosen) == len(rejected)
            case "planted-late":
                assert chosen[:-third] == rejected[:-third] and len(chosen) == len(rejected)


def test_tiny_benchmarks_and_impossible_ones() -> None:
    assert len(list(planted.generate(source(benchmark=True, test_pairs=3)))) == 3
    with pytest.raises(InputError, match=r"decay 0\.001\): no pairs for subset 'planted-late'"):
        list(planted.generate(source(decay=0.001, benchmark=True, test_pairs=10)))


def test_five_thousand_pairs_take_about_a_second() -> None:
    started = time.process_time()
    assert sum(1 for _ in planted.generate(source(pairs=5000, test_pairs=1))) == 5001
    assert time.process_time() - started < 2
