"""Log-probabilities of tokens through a language-model head, without the logits of a whole batch in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from shallow_signals.files import InputError
from shallow_signals.models.heads import unwrapped
from shallow_signals.models.tree import fitted_inputs

_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")


class _Head(NamedTuple):
    weight: Tensor  # [vocabulary, d]
    bias: Tensor | None
    cap: float | None  # logits are squashed to +- cap by tanh (Gemma 2)


def backbone(model: nn.Module) -> nn.Module:
    """The causal model without its language-model head, inside any wrapping (DDP, peft)."""
    base: Any = unwrapped(model)
    found: nn.Module = getattr(base, base.base_model_prefix)
    return found


def last_hidden(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """What the language-model head would read, [rows, width, d], with gradients.

    `inputs` are the forward's keyword arguments. The whole model is called, wrapped as it may be, and the backbone's
    output is read on the way; the head itself sees one position of each row.
    """
    caught: list[Tensor] = []
    hook = backbone(model).register_forward_hook(lambda _module, _inputs, output: caught.append(output[0]))
    try:
        model(**fitted_inputs(unwrapped(model), inputs), use_cache=False, logits_to_keep=1)
    finally:
        hook.remove()
    return caught[-1]


def vocabulary_logprobs(
    model: nn.Module, hidden: Tensor, where: Tensor, targets: Tensor, *, rows: int = 4096, columns: int = 32768
) -> Tensor:
    """log softmax(head(hidden[where]))[targets] in float32, [n], without gradients.

    `hidden` is [places, d]; `where` (ascending) and `targets` are int64 [n]: several targets may be read at one place,
    whose logits are made once. The head's product is made in the weights' type and summed up in float32 over pieces of
    at most `rows` x `columns`, so that a vocabulary of 128k never stands in memory whole.
    """
    weight, bias, cap = _head(model)
    answers = hidden.new_zeros(len(targets), dtype=torch.float32)
    for top in range(0, len(hidden), rows):
        h = hidden[top : top + rows]
        first, last = _span(where, top, top + len(h))
        place, target = where[first:last] - top, targets[first:last]
        total = torch.full((len(h),), -torch.inf, device=h.device)
        wanted = torch.zeros(last - first, device=h.device)
        for left in range(0, weight.shape[0], columns):
            piece = weight[left : left + columns]
            logits = _logits(h.to(piece.dtype), piece, None if bias is None else bias[left : left + columns], cap)
            total = torch.logaddexp(total, logits.logsumexp(-1))
            inside = (target >= left) & (target < left + piece.shape[0])
            wanted[inside] = logits[place[inside], target[inside] - left]
        answers[first:last] = wanted - total[place]
    return answers


def learned_logprobs(model: nn.Module, hidden: Tensor, where: Tensor, targets: Tensor, *, rows: int = 1024) -> Tensor:
    """The same as `vocabulary_logprobs` with gradients for `hidden` and the head.

    Products are made in autocast's type where it is on. Logits stand in memory for `rows` places at a time: the
    backward pass makes them again.
    """
    weight, bias, cap = _head(model)
    found: Tensor = _Logprobs.apply(hidden, weight, bias, where, targets, cap, rows)  # type: ignore[no-untyped-call]
    return found


class _Logprobs(torch.autograd.Function):
    """d log p(y) / d logit_j = [j = y] - p_j, and the chain rule by hand."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        where: Tensor,
        targets: Tensor,
        cap: float | None,
        rows: int,
    ) -> Tensor:
        device = hidden.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        used = (weight.to(kind), None if bias is None else bias.to(kind))
        total = torch.empty(len(hidden), device=hidden.device)
        wanted = torch.empty(len(targets), device=hidden.device)
        for top in range(0, len(hidden), rows):
            logits = _logits(hidden[top : top + rows].to(kind), *used, cap)
            first, last = _span(where, top, top + len(logits))
            total[top : top + rows] = logits.logsumexp(-1)
            wanted[first:last] = logits[where[first:last] - top, targets[first:last]]
        ctx.save_for_backward(hidden, weight, bias, where, targets, total)
        ctx.kind, ctx.cap, ctx.rows = kind, cap, rows
        return wanted - total[where]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, where, targets, total = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        used = (weight.to(ctx.kind), None if bias is None else bias.to(ctx.kind))
        at_place = torch.zeros_like(total).index_add_(0, where, gradient)
        for_hidden = torch.empty_like(hidden) if wants_hidden else None
        for_weight = torch.zeros_like(weight) if wants_weight else None
        for_bias = torch.zeros_like(bias) if wants_bias else None
        for top in range(0, len(hidden), ctx.rows):
            here = slice(top, top + ctx.rows)
            h = hidden[here].to(ctx.kind)
            logits = _logits(h, *used, ctx.cap)
            first, last = _span(where, top, top + len(h))
            bend = 1 - (logits / ctx.cap) ** 2 if ctx.cap else None
            change = logits.sub_(total[here, None]).exp_().mul_(-at_place[here, None])
            change.index_put_((where[first:last] - top, targets[first:last]), gradient[first:last], accumulate=True)
            change = (change if bend is None else change * bend).to(ctx.kind)
            if for_hidden is not None:
                for_hidden[here] = change @ used[0]
            if for_weight is not None:
                for_weight += change.t() @ h
            if for_bias is not None:
                for_bias += change.sum(0)
        return for_hidden, for_weight, for_bias, None, None, None, None


def _head(model: nn.Module) -> _Head:
    base: Any = unwrapped(model)
    config = base.config.get_text_config()
    if scale := next((name for name in _SCALES if getattr(config, name, None) not in (None, 1)), None):
        raise InputError(f"{type(base).__name__}: scales its logits ('{scale}'), which is not supported; use another")
    head = base.get_output_embeddings()
    return _Head(head.weight, head.bias, getattr(config, "final_logit_softcapping", None))


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, cap: float | None) -> Tensor:
    """Logits in float32, [places, columns]; a new tensor that the caller may overwrite."""
    logits = nn.functional.linear(hidden, weight, bias).float()
    return cap * torch.tanh(logits / cap) if cap else logits


def _span(where: Tensor, first: int, last: int) -> tuple[int, int]:
    """The range of indices whose places (ascending) lie in first ... last - 1."""
    start, end = torch.searchsorted(where, torch.tensor([first, last], device=where.device)).tolist()
    return start, end
