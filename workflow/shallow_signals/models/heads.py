"""The score of a sequence-classification model at every token, not only where the model itself would read it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from shallow_signals.models.tree import fitted_inputs


def token_scores(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """The head's score at every position, float32 [rows, width], with gradients.

    `inputs` are the forward's keyword arguments. The whole model is called, wrapped as it may be (DDP, peft), and the
    head's output is read on the way: what the model returns is the score at the last token that differs from its pad
    id, which is one token early wherever a row ends in a token that serves as padding, too.
    """
    caught: list[Tensor] = []
    hook = score_head(model).register_forward_hook(lambda _module, _inputs, output: caught.append(output))
    try:
        model(**fitted_inputs(unwrapped(model), inputs), use_cache=False)
    finally:
        hook.remove()
    return caught[-1][..., 0].float()


def score_head(model: nn.Module) -> nn.Module:
    """The module `score` of a sequence-classification model inside any wrapping (peft's copy that is trained)."""
    inner = unwrapped(model)
    head = getattr(inner, "score", None)
    if not isinstance(head, nn.Module):
        raise ValueError(f"{type(inner).__name__} has no head named 'score': it is no sequence-classification model")
    return head


def unwrapped(model: nn.Module) -> nn.Module:
    """The transformers model inside DDP and peft."""
    while isinstance(module := getattr(model, "module", None), nn.Module):
        model = module
    base = getattr(model, "get_base_model", None)
    inner: nn.Module = base() if callable(base) else model
    return inner


def read_scores(scores: Tensor, places: Tensor) -> Tensor:
    """Scores [n] at `places` (int64 [n, 2]: row, index) of token scores [rows, width]."""
    places = places.to(scores.device)
    return scores[places[:, 0], places[:, 1]]
