"""Token log-probabilities, as `models.logprobs` makes them."""

from shallow_signals.models.logprobs import Floats, Ints, PairTokens, ResponseLogprobs, cut_lengths, score_rows
from shallow_signals.models.logprobs import length_groups as length_groups
from shallow_signals.models.vocabulary import backbone, vocabulary_logprobs

__all__ = [
    "Floats",
    "Ints",
    "PairTokens",
    "ResponseLogprobs",
    "backbone",
    "cut_lengths",
    "length_groups",
    "score_rows",
    "vocabulary_logprobs",
]
