"""What sampled responses take, and reading them. At most: no response is foreseen to end before its cap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from shallow_signals.config.generation import Decoding
from shallow_signals.config.planning import ModelShape
from shallow_signals.planning.memory import READ, inference_bytes
from shallow_signals.planning.shape import body_flops, parameters, vocabulary_flops
from shallow_signals.planning.sizes import Sizes
from shallow_signals.planning.work import Work


def generate_outputs(sizes: Sizes, comparison: str) -> Work:
    study = sizes.study
    spec = study.alpacaeval[comparison]
    shape = sizes.shape(study.dpo[spec.policies].model)
    return _sampled([shape], _instructions(sizes, spec.instructions), spec.max_new_tokens, spec.batch)


def judge_outputs(sizes: Sizes, comparison: str) -> Work:
    spec = sizes.study.alpacaeval[comparison]
    rows = _instructions(sizes, spec.instructions)
    return _rewarded(sizes, spec.judge, 2 * rows, spec.max_new_tokens)  # both sides' answers


def decode(sizes: Sizes, decoding: str) -> Work:
    spec = sizes.study.decoding[decoding]
    rows = _instructions(sizes, spec.instructions) * spec.samples * _strategies(spec)
    return _sampled(_decoders(sizes, spec), rows, spec.max_new_tokens, spec.batch)


def decode_retrained(sizes: Sizes, decoding: str) -> Work:
    spec = sizes.study.decoding[decoding]
    rows = _instructions(sizes, spec.instructions) * spec.samples
    return _sampled(_decoders(sizes, spec), rows, spec.max_new_tokens, spec.batch)


def read_texts(sizes: Sizes, decoding: str) -> Work:
    """Both responses of some pairs under both models, and the policy's way on from the beginning of one."""
    spec = sizes.study.decoding[decoding]
    base = spec.reference or sizes.study.dpo[spec.policy].model
    lengths = sizes.lengths(spec.texts or "", base, "test")
    share = min(1.0, spec.text_rows / lengths.pairs)
    responses = np.minimum(lengths.chosen, spec.max_new_tokens) + np.minimum(lengths.rejected, spec.max_new_tokens)
    rows, scale = lengths.prompt + responses, lengths.weight * share
    new = _sampled(_decoders(sizes, spec), lengths.pairs * share, spec.max_new_tokens - spec.prefix, spec.batch)
    reading = sum(
        body_flops(shape, rows) + vocabulary_flops(shape, float(responses.sum())) for shape in _decoders(sizes, spec)
    )
    return replace(new, tokens=new.tokens + rows.sum() * scale, flops=new.flops + reading * scale)


def score_decoded(sizes: Sizes, decoding: str, run: str) -> Work:
    spec = sizes.study.decoding[decoding]
    rows = _instructions(sizes, spec.instructions) * spec.samples * (_strategies(spec) if run == "responses" else 1)
    return _rewarded(sizes, spec.reward, rows, spec.max_new_tokens)


def _instructions(sizes: Sizes, name: str) -> float:
    return float(sizes.study.instructions[name].rows or 805)  # all of them: AlpacaEval's own


def _decoders(sizes: Sizes, spec: Decoding) -> list[ModelShape]:
    """The policy's and the reference's shape."""
    trained = sizes.study.dpo.get(spec.policy)
    policy = trained.model if trained else spec.policy
    return [sizes.shape(policy), sizes.shape(spec.reference or policy)]


def _rewarded(sizes: Sizes, judge: str, rows: float, longest: int) -> Work:
    """Responses of at most `longest` tokens read by a judge; nothing where no model of ours is one."""
    study = sizes.study
    spec = study.judges[judge]
    if spec.kind not in ("trained", "model"):
        return Work()
    shape = sizes.shape(spec.model if spec.kind == "model" else study.reward_models[spec.experiment].model)
    widths = np.full(1, float(longest))
    return Work(
        tokens=rows * longest,
        flops=rows * body_flops(shape, widths),
        memory=inference_bytes(shape, READ, reward_model=True),
    )


def _strategies(spec: Decoding) -> int:
    """Both models alone, and every strategy at every one of its parameters."""
    return 2 + len(spec.mixing) + len(spec.length_control) + len(spec.kl_threshold)


def _sampled(shapes: Sequence[ModelShape], rows: float, longest: int, batch: int) -> Work:
    """Responses sampled from models that all read every token. At most: none is foreseen to end before its cap."""
    tokens = rows * longest
    steps = sum(body_flops(shape, np.ones(1)) + vocabulary_flops(shape, 1) for shape in shapes)
    weights = sum(2.0 * parameters(shape) for shape in shapes)
    cache = sum(4.0 * shape.layers * shape.kv_heads * shape.head_dim for shape in shapes) * batch * longest
    return Work(
        tokens=tokens * len(shapes),
        flops=steps * tokens,
        generated=tokens,
        weights=weights / batch,
        memory=weights + cache,
        disk=6.0 * tokens,
    )
