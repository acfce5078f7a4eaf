"""Responses as hashed word n-grams, tokenised once: the features of every cut are slices of the same arrays.

A *word*, the unit of the cut, is a run of characters without white space. The features are the tokens inside the kept
words and their bigrams, exactly those of scikit-learn's `HashingVectorizer(alternate_sign=False, ngram_range=(1, 2))`
with its default token pattern, on the kept words joined by spaces.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.utils import murmurhash3_32

from shallow_signals.config.truncation import Side
from shallow_signals.data.pairs import uniform_hash

FEATURES = 2**18
_TOKEN = re.compile(r"\b\w\w+\b")

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Words:
    """The hashed tokens of n texts, one text after the other."""

    unigrams: NDArray[np.int32]  # [tokens] feature of each token
    bigrams: NDArray[np.int32]  # [tokens] feature of a token and its successor (means nothing at a text's last token)
    token_bounds: Ints  # [words + 1] tokens before each word
    word_bounds: Ints  # [n + 1] words before each text

    @property
    def counts(self) -> Ints:
        """Words of each text, [n]."""
        return np.diff(self.word_bounds)


def hash_words(texts: Sequence[str]) -> Words:
    """Tokenise and hash n texts."""
    vocabulary: defaultdict[str, int] = defaultdict()
    vocabulary.default_factory = vocabulary.__len__
    per_text = [[vocabulary[word] for word in text.lower().split()] for text in texts]
    word_bounds = _bounds(np.array([len(words) for words in per_text], dtype=np.int64))
    words = np.fromiter((word for text in per_text for word in text), dtype=np.int64, count=int(word_bounds[-1]))

    tokens: defaultdict[str, int] = defaultdict()
    tokens.default_factory = tokens.__len__
    in_word = [[tokens[token] for token in _TOKEN.findall(word)] for word in vocabulary]
    sizes = np.array([len(found) for found in in_word], dtype=np.int64)
    flat = np.array([token for found in in_word for token in found], dtype=np.int64)
    ids = flat[_slices(_bounds(sizes)[:-1][words], sizes[words])]
    return Words(*_hash_ngrams(ids, list(tokens)), _bounds(sizes[words]), word_bounds)


def cut(counts: Ints, side: Side, ratio: int, offsets: NDArray[np.float64]) -> tuple[Ints, Ints]:
    """First kept word and number of kept words, each [n]: floor(ratio% of the words), at least one.

    `offsets` are numbers in [0, 1), [n], read by `window` only: each of its positions is equally likely.
    """
    kept = np.minimum(counts, np.maximum(1, counts * ratio // 100))
    free = counts - kept
    if side == "head":
        return np.zeros_like(counts), kept
    return (free if side == "tail" else np.floor(offsets * (free + 1)).astype(np.int64)), kept


def window_offsets(pair_ids: Sequence[str]) -> NDArray[np.float64]:
    """Where in each pair's responses a window lies, in [0, 1), [n]: drawn by the key that truncated shards use."""
    return np.array([uniform_hash("window", pair_id) for pair_id in pair_ids])


def features(words: Words, first: Ints, kept: Ints) -> Any:
    """The n-gram counts of words `first` to `first + kept` of each text, scaled to length one: CSR [n, FEATURES]."""
    start = words.token_bounds[words.word_bounds[:-1] + first]
    length = words.token_bounds[words.word_bounds[:-1] + first + kept] - start
    matrix = _counts(words.unigrams, start, length) + _counts(words.bigrams, start, np.maximum(length - 1, 0))
    norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    matrix.data /= np.repeat(np.maximum(norms, 1e-12), np.diff(matrix.indptr)).astype(np.float32)
    return matrix


def _counts(columns: NDArray[np.int32], start: Ints, length: Ints) -> Any:
    """How often each feature stands in each slice: CSR float32 [n, FEATURES]."""
    picked = columns[_slices(start, length)]
    ones = np.ones(picked.size, dtype=np.float32)
    matrix = sparse.csr_matrix((ones, picked, _bounds(length)), shape=(len(start), FEATURES))
    matrix.sum_duplicates()
    return matrix


def _slices(start: Ints, length: Ints) -> Ints:
    """The indices start, start + 1, ... of each slice, one slice after the other."""
    before = _bounds(length)
    return np.repeat(start - before[:-1], length) + np.arange(before[-1])


def _bounds(sizes: Ints) -> Ints:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes, dtype=np.int64)])


def _hash_ngrams(ids: Ints, tokens: list[str]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Features of the tokens `ids` and of each with its successor; every distinct n-gram is hashed once."""
    unigrams = np.array([_feature(token) for token in tokens], dtype=np.int32)
    pairs = ids.copy()
    pairs[:-1] = ids[:-1] * len(tokens) + ids[1:]
    distinct, where = np.unique(pairs, return_inverse=True)
    hashed = [_feature(f"{tokens[pair // len(tokens)]} {tokens[pair % len(tokens)]}") for pair in distinct.tolist()]
    return unigrams[ids], np.array(hashed, dtype=np.int32)[where]


def _feature(ngram: str) -> int:
    return abs(int(murmurhash3_32(ngram))) % FEATURES
