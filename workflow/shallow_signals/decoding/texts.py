"""KL by position on texts that are given: a data set's chosen and rejected responses, or any others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shallow_signals.data.pairs import content_id
from shallow_signals.decoding import streams
from shallow_signals.decoding.kl import argmax_rank, exact_kl, log_probs, monte_carlo_kl
from shallow_signals.decoding.pair import ModelPair, Side, pair_models
from shallow_signals.files import InputError
from shallow_signals.models.logprobs import length_groups
from shallow_signals.models.tree import Segment, batch_rows, refuse_unsupported, row_length
from shallow_signals.models.vocabulary import backbone

Text = tuple[Sequence[int], Sequence[Sequence[int]]]  # a prompt and its responses, as token ids
_PIECE = 1 << 24  # logits of one model that stand in memory at once


@dataclass(frozen=True)
class TextKL:
    """What two models make of one response of T tokens, [T] each, in nats."""

    kl: NDArray[np.float32]  # KL(policy || reference) before each token
    log_ratio: NDArray[np.float32]  # log(policy(y_t) / reference(y_t))
    argmax_rank: NDArray[np.int32]  # rank under the reference of the policy's likeliest token; 1: the same


def text_kl(
    policy: nn.Module,
    reference: nn.Module | None,
    texts: Sequence[Text],
    *,
    monte_carlo: int | None = None,
    seed: int = 0,
    token_budget: int = 4096,
) -> list[list[TextKL]]:
    """KL(policy || reference) at every position of every response of every text, in their order.

    A prompt is read once for all of its responses; rows are batched by length within `token_budget` padded tokens. The
    KL is exact, over the whole vocabulary in float32, or the paper's estimate (section 3.3.2) from `monte_carlo` tokens
    drawn by `seed`, text, response and position. An empty prompt, which predicts nothing, is an `InputError`.
    """
    pair = pair_models(policy, reference)
    for side in (pair.policy, pair.reference):
        refuse_unsupported(side.base)
    for i, (prompt, _) in enumerate(texts):
        if not len(prompt):
            raise InputError(f"text {i}: its prompt is empty; put at least the generation prompt")
    rows = [[Segment(prompt), *(Segment(response, 0) for response in responses)] for prompt, responses in texts]
    found: dict[int, list[TextKL]] = {}
    with torch.inference_mode(), pair.evaluating():
        for members in length_groups([row_length(row) for row in rows], token_budget):
            keys = [_keys(texts[i], seed) for i in members] if monte_carlo else []
            results = _group(pair, [rows[i] for i in members], keys, monte_carlo or 0)
            found.update(zip(members, results, strict=True))
    return [found[i] for i in range(len(texts))]


def _keys(text: Text, seed: int) -> list[int]:
    prompt, responses = text
    name = content_id(list(map(int, prompt)))
    return [
        streams.stream_key(seed, content_id(name, list(map(int, response))), number)
        for number, response in enumerate(responses)
    ]


def _group(
    pair: ModelPair, rows: Sequence[Sequence[Segment]], keys: Sequence[Sequence[int]], samples: int
) -> list[list[TextKL]]:
    """One forward pass of each model over a batch of rows."""
    device = next(pair.policy.model.parameters()).device
    batch = batch_rows(rows, 0).to(device)
    width = batch.input_ids.shape[1]
    places: list[int] = []  # flat indices of where each response token is predicted
    targets: list[int] = []
    drawn: list[tuple[int, int]] = []  # stream and 1-based position of each
    for r, row in enumerate(rows):
        prompt_end = batch.starts[r][0] + len(row[0].ids) - 1
        for s, segment in enumerate(row[1:], start=1):
            start = batch.starts[r][s]
            places += [r * width + (start + t - 1 if t else prompt_end) for t in range(len(segment.ids))]
            targets += map(int, segment.ids)
            drawn += [(keys[r][s - 1] if samples else 0, t + 1) for t in range(len(segment.ids))]
    where = torch.tensor(places, dtype=torch.int64, device=device)
    hidden = [_hidden(side, batch.model_inputs(), where) for side in (pair.policy, pair.reference)]
    at = torch.tensor(targets, dtype=torch.int64, device=device)[:, None]
    kls, ratios, ranks = [], [], []
    piece = max(1, _PIECE // pair.vocabulary)
    for top in range(0, len(places), piece):
        own = _head(pair.policy, hidden[0][top : top + piece])
        other = _head(pair.reference, hidden[1][top : top + piece])
        if samples:
            numbers = [streams.uniforms([k], [t], samples, streams.ESTIMATES)[0] for k, t in drawn[top : top + piece]]
            kls.append(monte_carlo_kl(own, other, torch.from_numpy(np.concatenate(numbers)).to(device))[0].float())
        else:
            kls.append(exact_kl(own, other))
        token = at[top : top + piece]
        ratios.append((own.gather(1, token) - other.gather(1, token))[:, 0])
        ranks.append(argmax_rank(own, other).int())
    values = [torch.cat(parts).cpu().numpy() if parts else np.zeros(0, np.float32) for parts in (kls, ratios, ranks)]
    ends = np.cumsum([len(segment.ids) for row in rows for segment in row[1:]])[:-1]
    pieces = [TextKL(*columns) for columns in zip(*(np.split(value, ends) for value in values), strict=True)]
    results = iter(pieces)
    return [[next(results) for _ in row[1:]] for row in rows]


def _hidden(side: Side, inputs: dict[str, Tensor], where: Tensor) -> Tensor:
    """Last hidden states at some flat places, [places, size]."""
    with side.active() as model:
        states: Tensor = backbone(model)(**inputs, use_cache=False).last_hidden_state
    return states.flatten(0, 1)[where]


def _head(side: Side, hidden: Tensor) -> Tensor:
    """Log-probabilities over the vocabulary, float32 [places, vocabulary]."""
    with side.active():
        logits: Tensor = side.base.get_output_embeddings()(hidden).float()
    if cap := getattr(side.base.config.get_text_config(), "final_logit_softcapping", None):
        logits = cap * torch.tanh(logits / cap)
    return log_probs(logits)
