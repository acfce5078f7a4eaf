"""A generated world of preferences in which the position of the signal is known (docs/planted-world.md).

A response is a run of short sentences. Each has a latent quality, +1 or -1, that two of its words show. The true reward
is a weighted sum of the qualities, and labels are drawn from Bradley-Terry on it; the weights are the planted signal.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from shallow_signals.config.sources import PlantedSource
from shallow_signals.data.pairs import Pair
from shallow_signals.files import InputError

Profile = Literal["front", "uniform", "back", "length"]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DETERMINERS = ("the", "this", "that", "our")
GOOD_ADJECTIVES = ("good", "fine", "nice", "neat", "warm", "bright")
BAD_ADJECTIVES = ("bad", "dull", "poor", "grim", "cold", "harsh")
TOPICS = (
    ("port", "ship", "tide", "crew"),
    ("rose", "lawn", "tree", "pond"),
    ("soup", "bread", "stove", "table"),
    ("class", "book", "desk", "test"),
    ("stall", "fruit", "scale", "price"),
    ("hall", "song", "band", "stage"),
)
VERBS = ("looks", "feels", "seems", "stays", "turns", "works", "ends", "moves", "grows", "holds", "runs", "sits")
DEGREES = ("quite", "rather", "very", "most", "so", "too")
GOOD_ADVERBS = ("well", "gladly", "nicely", "gently", "kindly", "safely")
BAD_ADVERBS = ("badly", "sadly", "poorly", "rudely", "dimly", "roughly")
QUALITY_OF_WORD = dict.fromkeys(GOOD_ADJECTIVES + GOOD_ADVERBS, 1) | dict.fromkeys(BAD_ADJECTIVES + BAD_ADVERBS, -1)

# "The good ship runs quite well.": seven tokens, the full stop being one. The two words that show the quality stand
# second from either end, so that a head cut and the tail cut of the same size reveal equally many sentences.
TOKENS_PER_SENTENCE = 7
QUALITY_SLOTS = (1, 5)
SENTENCE_COUNTS = (6, 8, 10)
MAX_SENTENCES = max(SENTENCE_COUNTS)

FORMS = (
    "Tell me about the {} {} {}.",
    "Describe the {} {} {}.",
    "What is the {} {} like {}?",
    "How do you find the {} {} {}?",
    "Write a few lines on the {} {} {}.",
    "Say how the {} {} is {}.",
    "What do you think of the {} {} {}?",
    "Give a short account of the {} {} {}.",
)
MODIFIERS = ("old", "new", "big", "small", "red", "blue", "plain", "grand", "first", "last", "far", "near")
SETTINGS = (
    "in spring",
    "in winter",
    "at night",
    "at noon",
    "in the rain",
    "in the sun",
    "by the sea",
    "by the road",
    "on Sunday",
    "on Monday",
)
_NOUNS = tuple(noun for topic in TOPICS for noun in topic)
# A prompt is a test prompt when its four word numbers add up to 0 modulo 5: one fifth of all prompts, balanced over
# every word, and the same fifth for every seed and profile, so that no test prompt was ever trained on.
_TEST_MODULUS = 5

BENCHMARK_SECTIONS = {  # subset -> section, in the order of RewardBench's sections
    "planted-easy": "Chat",
    "planted-close": "Chat Hard",
    "planted-longer-rejected": "Chat Hard",
    "planted-early": "Safety",
    "planted-late": "Reasoning",
}
_EASY_GAP = 1.5  # true reward of chosen minus rejected, in units of the reward's own scale
_CLOSE_GAP = 0.5
_TIE = 1e-9  # a smaller gap is rounding

_LENGTH_SHARE = 0.3  # weight of the qualities in the "length" profile; length takes the rest of the variance
_STREAMS = {"train": 0, "test": 1, "benchmark": 2, "responses": 3, "instructions": 4}  # one random stream for each use


def weights(profile: Profile, sentences: int, decay: float) -> Floats:
    """The weight of each sentence's quality in a response of `sentences` sentences.

    Squares sum to 1 for every number of sentences (0.09 in the "length" profile), so that longer responses do not have
    larger rewards. "front" falls by the factor `decay` from each sentence to the next, "back" is its mirror image.
    """
    steps = np.arange(sentences, dtype=np.float64)
    if profile == "front":
        raw = decay**steps
    elif profile == "back":
        raw = decay ** (sentences - 1 - steps)
    else:
        raw = np.ones(sentences)
    scaled: Floats = raw / np.sqrt(np.sum(raw**2)) * (_LENGTH_SHARE if profile == "length" else 1.0)
    return scaled


def length_term(profile: Profile, sentences: int) -> float:
    """What a response earns by its length alone: 0, but in the "length" profile linear in `sentences`.

    There it has mean 0 and variance 0.91 over responses, so that independent qualities bring the reward to variance 1.
    """
    if profile != "length":
        return 0.0
    mean, spread = np.mean(SENTENCE_COUNTS), np.std(SENTENCE_COUNTS)
    return float(np.sqrt(1 - _LENGTH_SHARE**2) * (sentences - mean) / spread)


def rewards(source: PlantedSource, counts: Ints, qualities: Floats) -> Floats:
    """True rewards, shape [n], of responses of `counts` [n] sentences with `qualities` [n, MAX_SENTENCES] (0 behind the
    last sentence)."""
    table = np.zeros((MAX_SENTENCES + 1, MAX_SENTENCES))
    base = np.zeros(MAX_SENTENCES + 1)
    for sentences in range(1, MAX_SENTENCES + 1):
        table[sentences, :sentences] = weights(source.profile, sentences, source.decay)
        base[sentences] = length_term(source.profile, sentences)
    total = base[counts]
    for sentence in range(MAX_SENTENCES):  # one fixed order of summation: a reward read back from text is bit-equal
        total = total + table[counts, sentence] * qualities[:, sentence]
    return total


def true_reward(text: str, source: PlantedSource) -> float:
    """The true reward of any text, read from its words; equals the generator's own for an intact response.

    Sentences end at full stops; one without a letter does not count, and an unfinished last one does. A sentence's
    quality is the mean sign of its quality words, 0 if it has none. Weights are those of a response of as many
    sentences; only the first `MAX_SENTENCES` count. A text without a sentence has reward 0.
    """
    sentences = [found for part in text.lower().split(".") if (found := re.findall(r"[a-z]+", part))][:MAX_SENTENCES]
    if not sentences:
        return 0.0
    qualities = np.zeros((1, MAX_SENTENCES))
    for index, words in enumerate(sentences):
        signs = [QUALITY_OF_WORD[word] for word in words if word in QUALITY_OF_WORD]
        qualities[0, index] = sum(signs) / len(signs) if signs else 0.0
    return float(rewards(source, np.array([len(sentences)]), qualities)[0])


def generate(source: PlantedSource) -> Iterator[Pair]:
    """The world's pairs, train before test; the same for the same source on every machine.

    `margin` is the true reward of chosen minus rejected, negative where the drawn label is the less likely one. Sources
    that differ in profile, decay or sharpness only have the same texts with other labels. With `benchmark` set there
    are `test_pairs` pairs, all `test`, in equal shares of the subsets of `BENCHMARK_SECTIONS`, without label noise.
    """
    if source.benchmark:
        yield from _benchmark(source)
        return
    for split, n in (("train", source.pairs), ("test", source.test_pairs)):
        rng = _rng(source.seed, split)
        prompts, topics = _prompts(rng, n, test=split == "test")
        first, second = _latents(rng, n, source.persistence), _latents(rng, n, source.persistence)
        texts = _render(rng, topics, *first), _render(rng, topics, *second)
        gap = rewards(source, *first) - rewards(source, *second)
        wins = rng.random(n) < 1 / (1 + np.exp(-source.sharpness * gap))  # Bradley-Terry
        yield from _pairs(source, prompts, texts, gap, wins, split, None)


def responses(seed: int, n: int) -> list[tuple[str, str]]:
    """`n` unlabelled (prompt, response) texts on train prompts, qualities independent: what a base model reads."""
    rng = _rng(seed, "responses")
    prompts, topics = _prompts(rng, n, test=False)
    return list(zip(prompts, _render(rng, topics, *_latents(rng, n, 0.0)), strict=True))


def instructions(seed: int, n: int) -> list[str]:
    """`n` different test prompts in random order; `ValueError` when the world has fewer (it has 4,608)."""
    numbers = itertools.product(*(range(len(words)) for words in (FORMS, MODIFIERS, _NOUNS, SETTINGS)))
    everything = [_prompt(*number) for number in numbers if sum(number) % _TEST_MODULUS == 0]
    if n > len(everything):
        raise ValueError(f"the planted world has {len(everything)} test prompts, fewer than the {n} asked for")
    return [everything[index] for index in _rng(seed, "instructions").permutation(len(everything))[:n]]


def _rng(seed: int, use: str) -> np.random.Generator:
    return np.random.default_rng([seed, _STREAMS[use]])


def _prompts(rng: np.random.Generator, n: int, test: bool) -> tuple[list[str], Ints]:
    """`n` prompts, drawn with replacement, and the topic of each."""
    form = rng.integers(len(FORMS), size=n)
    modifier = rng.integers(len(MODIFIERS), size=n)
    noun = rng.integers(len(_NOUNS), size=n)
    residue = np.zeros(n, dtype=np.int64) if test else rng.integers(1, _TEST_MODULUS, size=n)
    setting = (residue - form - modifier - noun) % _TEST_MODULUS
    setting = setting + _TEST_MODULUS * rng.integers(len(SETTINGS) // _TEST_MODULUS, size=n)
    texts = [_prompt(*numbers) for numbers in zip(form, modifier, noun, setting, strict=True)]
    return texts, noun // len(TOPICS[0])


def _prompt(form: int, modifier: int, noun: int, setting: int) -> str:
    return FORMS[form].format(MODIFIERS[modifier], _NOUNS[noun], SETTINGS[setting])


def _latents(rng: np.random.Generator, n: int, persistence: float) -> tuple[Ints, Floats]:
    """Numbers of sentences [n] and qualities [n, MAX_SENTENCES], 0 behind the last sentence."""
    counts = np.array(SENTENCE_COUNTS)[rng.integers(len(SENTENCE_COUNTS), size=n)]
    first = np.where(rng.random((n, 1)) < 0.5, 1.0, -1.0)
    stay = persistence + (1 - persistence) / 2
    steps = np.where(rng.random((n, MAX_SENTENCES - 1)) < stay, 1.0, -1.0)
    qualities = np.cumprod(np.concatenate([first, steps], axis=1), axis=1)
    return counts, qualities * (np.arange(MAX_SENTENCES) < counts[:, None])


def _render(rng: np.random.Generator, topics: Ints, counts: Ints, qualities: Floats) -> list[str]:
    """The texts of latent responses; everything but the quality is free."""
    shape = qualities.shape
    good = (qualities > 0).astype(np.int64)

    def draw(words: tuple[str, ...]) -> npt.NDArray[np.object_]:
        return np.array(words, dtype=object)[rng.integers(len(words), size=shape)]

    def draw_from(choices: Any, which: Ints) -> npt.NDArray[np.object_]:
        table = np.array(choices, dtype=object)
        found: npt.NDArray[np.object_] = table[which, rng.integers(table.shape[1], size=shape)]
        return found

    columns = (
        draw(tuple(word.capitalize() for word in DETERMINERS)),
        draw_from((BAD_ADJECTIVES, GOOD_ADJECTIVES), good),
        draw_from(TOPICS, np.broadcast_to(topics[:, None], shape)),
        draw(VERBS),
        draw(DEGREES),
        draw_from((BAD_ADVERBS, GOOD_ADVERBS), good),
    )
    rows = zip(counts.tolist(), *(column.tolist() for column in columns), strict=True)
    return [" ".join([f"{' '.join(words)}." for words in zip(*slots, strict=True)][:count]) for count, *slots in rows]


def _pairs(
    source: PlantedSource,
    prompts: list[str],
    texts: tuple[list[str], list[str]],
    gap: Floats,
    wins: npt.NDArray[np.bool_],
    split: str,
    subset: str | None,
) -> Iterator[Pair]:
    """Pairs whose chosen response is the first where `wins`; `gap` is the first's reward minus the second's."""
    for prompt, first, second, difference, win in zip(prompts, *texts, gap.tolist(), wins.tolist(), strict=True):
        yield Pair(
            prompt=[{"role": "user", "content": prompt}],
            chosen=first if win else second,
            rejected=second if win else first,
            cluster=None,
            split=split,
            subset=subset,
            margin=difference if win else -difference,
            aspect=source.aspect,
            generator=None,
        )


def _benchmark(source: PlantedSource) -> Iterator[Pair]:
    """RewardBench-like pairs: chosen has the larger true reward, always."""
    rng = _rng(source.seed, "benchmark")
    share, rest = divmod(source.test_pairs, len(BENCHMARK_SECTIONS))
    for index, subset in enumerate(BENCHMARK_SECTIONS):
        n = share + (index < rest)
        better, worse = _benchmark_latents(rng, source, subset, n)
        prompts, topics = _prompts(rng, n, test=True)
        texts = _render(rng, topics, *better), _render(rng, topics, *worse)
        gap = rewards(source, *better) - rewards(source, *worse)
        yield from _pairs(source, prompts, texts, gap, np.ones(n, dtype=np.bool_), "test", subset)


_Latents = tuple[Ints, Floats]


def _benchmark_latents(
    rng: np.random.Generator, source: PlantedSource, subset: str, n: int
) -> tuple[_Latents, _Latents]:
    """`n` better and `n` worse latent responses of one subset, by rejection."""
    found: list[tuple[Ints, Floats, Ints, Floats]] = []
    missing = n
    for _ in range(200):
        counts, qualities = _latents(rng, 20_000, source.persistence)
        other_counts, other = _latents(rng, 20_000, source.persistence)
        if subset in ("planted-early", "planted-late"):
            other_counts, sentence, third = counts, np.arange(MAX_SENTENCES), counts[:, None] // 3
            part = sentence < third if subset == "planted-early" else sentence >= counts[:, None] - third
            redrawn = np.where(rng.random(qualities.shape) < 0.5, 1.0, -1.0) * (qualities != 0)
            other = np.where(part, redrawn, qualities)
        gap = rewards(source, counts, qualities) - rewards(source, other_counts, other)
        keep = gap > _TIE
        if subset == "planted-easy":
            keep &= gap > _EASY_GAP
        elif subset == "planted-close":
            keep &= gap < _CLOSE_GAP
        elif subset == "planted-longer-rejected":
            keep &= other_counts > counts
        rows = np.flatnonzero(keep)[:missing]
        found.append((counts[rows], qualities[rows], other_counts[rows], other[rows]))
        missing -= len(rows)
        if not missing:
            break
    else:
        raise InputError(
            f"planted world (profile {source.profile}, decay {source.decay}): no pairs for subset '{subset}'; "
            "take a decay nearer to 1"
        )
    a, b, c, d = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return (a, b), (c, d)
