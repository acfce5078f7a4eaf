"""The best accuracy that any judge can reach on a planted world from the kept part of each response, computed exactly.

The judge knows the world's rules and sees the kept words of both responses. It doesn't see what was cut: nor, then, a
response's full length, unless the kept length gives it away. Everything below is enumeration: all 2^S quality sequences
for every number of sentences S, so 1,344 hidden states for a response and 1.8 million for a pair.
"""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np

from shallow_signals.config.sources import PlantedSource
from shallow_signals.config.truncation import Truncation
from shallow_signals.data import planted
from shallow_signals.data.planted import QUALITY_SLOTS, TOKENS_PER_SENTENCE, Floats
from shallow_signals.files import InputError

# What a judge sees of a response, but for the qualities: kept tokens, whether its first word is the response's first
# (a capital without a space before it), and where in a sentence it starts.
_Sight = tuple[int, bool, int]


def best_accuracy(source: PlantedSource, truncation: Truncation) -> float:
    """The accuracy, against the noisy labels, of the Bayes-optimal judge of responses cut by `truncation`.

    Cuts keep floor(ratio x 7 S) tokens of a response of S sentences, at least 1; a sentence's quality is revealed when
    at least one of its two quality words is kept. A `window` starts at an offset drawn uniformly from those possible,
    for each response by itself, which the judge isn't told. `pairs` sees whole responses; `shuffled` labels teach a
    judge nothing: one half. Pairs whose cut responses are equal texts count here, and can only be guessed.

    Raises `InputError` for cuts by characters and for `topshare`, whose kept parts depend on words or on a model.
    """
    if truncation.kind == "shuffled":
        return 0.5
    advantage = _advantage(source)
    if truncation.kind == "min_length":
        return 0.5 + _min_length(advantage)
    total = 0.0
    sights = list(_sights(truncation).values())
    for index, members in enumerate(sights):
        rows = _reveal(advantage, members).T
        total += float(np.abs(_reveal(rows, members)).sum())
        # Swapping the two responses changes the sign only: the other half of the table is known.
        total += 2 * sum(float(np.abs(_reveal(rows, others)).sum()) for others in sights[:index])
    return 0.5 + total


def length_only_accuracy(source: PlantedSource, truncation: Truncation) -> float:
    """The best accuracy, against the noisy labels, of a judge that sees the kept lengths only (tokens)."""
    if truncation.kind in ("shuffled", "min_length"):  # nothing learned; or both lengths the same
        return 0.5
    advantage = _advantage(source)
    by_count = np.array(
        [[advantage[rows, columns].sum() for columns in _slices().values()] for rows in _slices().values()]
    )
    kept = [_kept_tokens(truncation, sentences) for sentences in planted.SENTENCE_COUNTS]
    same = np.array([[length == k for length in kept] for k in sorted(set(kept))], dtype=np.float64)
    return 0.5 + float(np.abs(same @ by_count @ same.T).sum())


def _slices() -> dict[int, slice]:
    """For each number of sentences its rows among the hidden states of a response.

    Within, state number i has the quality +1 in sentence s where bit s of i, counted from the left, is set: the states
    that agree on a run of sentences are found by reshaping.
    """
    found, start = {}, 0
    for sentences in planted.SENTENCE_COUNTS:
        found[sentences] = slice(start, start + 2**sentences)
        start += 2**sentences
    return found


def _advantage(source: PlantedSource) -> Floats:
    """P(a, b) (P(first preferred | a, b) - 1/2) for all pairs (a, b) of hidden states.

    The best judge's accuracy is 1/2 plus the sum, over all it can see, of the absolute value of this matrix summed over
    the states that look alike.
    """
    probabilities, totals = [], []
    stay = source.persistence + (1 - source.persistence) / 2
    for sentences in planted.SENTENCE_COUNTS:
        bits = (np.arange(2**sentences)[:, None] >> np.arange(sentences - 1, -1, -1)) & 1
        qualities = 2.0 * bits - 1
        moves = (np.diff(bits, axis=1) != 0).sum(axis=1)
        chance = 0.5 * stay ** (sentences - 1 - moves) * (1 - stay) ** moves
        probabilities.append(chance / len(planted.SENTENCE_COUNTS))
        weights = planted.weights(source.profile, sentences, source.decay)
        totals.append(qualities @ weights + planted.length_term(source.profile, sentences))
    p, reward = np.concatenate(probabilities), np.concatenate(totals)
    gap = reward[:, None] - reward[None, :]
    return 0.5 * np.tanh(source.sharpness * gap / 2) * np.outer(p, p)  # sigmoid(x) - 1/2 = tanh(x/2) / 2


def _kept_tokens(truncation: Truncation, sentences: int) -> int:
    total = TOKENS_PER_SENTENCE * sentences
    if truncation.keeps_text:
        return total
    if truncation.kind != "cut" or truncation.unit != "token":
        raise InputError(
            f"truncation '{truncation.name}': the best accuracy of a planted world is known for token cuts only; "
            "take one like head50, tail50, window50, head16tok or min_length"
        )
    if truncation.length is not None:
        return min(truncation.length, total)
    assert truncation.ratio is not None
    return max(1, math.floor(truncation.ratio * total))


def _sights(truncation: Truncation) -> dict[_Sight, list[tuple[int, int, int, float]]]:
    """What a judge may see but the qualities, and each (S, first revealed, last revealed + 1, chance) behind it."""
    found: dict[_Sight, list[tuple[int, int, int, float]]] = defaultdict(list)
    for sentences in planted.SENTENCE_COUNTS:
        kept = _kept_tokens(truncation, sentences)
        spare = TOKENS_PER_SENTENCE * sentences - kept
        offsets = {"head": [0], "tail": [spare], "window": list(range(spare + 1))}[truncation.side]
        for offset in offsets:
            shown = [
                sentence
                for sentence in range(sentences)
                if any(offset <= TOKENS_PER_SENTENCE * sentence + slot < offset + kept for slot in QUALITY_SLOTS)
            ]
            low, high = (shown[0], shown[-1] + 1) if shown else (0, 0)
            sight = (kept, offset == 0, offset % TOKENS_PER_SENTENCE)
            found[sight].append((sentences, low, high, 1 / len(offsets)))
    return found


def _reveal(matrix: Floats, members: list[tuple[int, int, int, float]]) -> Floats:
    """`matrix` [states, anything] with the states summed that show the same qualities: [2^revealed, anything]."""
    slices = _slices()
    revealed = 0.0
    for sentences, low, high, chance in members:
        shape = 2**low, 2 ** (high - low), 2 ** (sentences - high), matrix.shape[1]
        revealed = revealed + chance * matrix[slices[sentences]].reshape(shape).sum(axis=(0, 2))
    return np.asarray(revealed)


def _min_length(advantage: Floats) -> float:
    """Both responses cut to the shorter one's tokens: which one was longer isn't seen, nor by how much."""
    slices = _slices()
    total = 0.0
    for shared in planted.SENTENCE_COUNTS:
        longer = [sentences for sentences in planted.SENTENCE_COUNTS if sentences > shared]
        alike = np.zeros((2**shared, 2**shared))
        for first, second in [(shared, shared), *((shared, s) for s in longer), *((s, shared) for s in longer)]:
            block = advantage[slices[first], slices[second]]
            alike += block.reshape(2**shared, 2 ** (first - shared), 2**shared, -1).sum(axis=(1, 3))
        total += float(np.abs(alike).sum())
    return total
