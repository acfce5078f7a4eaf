"""What models make of texts laid out as trees: a reward model's scores, and the states that shared layers leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from shallow_signals.evaluation.layouts import Layout
from shallow_signals.models.attention import with_grouped_attention
from shallow_signals.models.heads import read_scores, score_head, token_scores
from shallow_signals.models.load import (
    Attention,
    load_causal_lm,
    load_reward_model,
    load_tokenizer,
    pick_compute_dtype,
    pick_device,
)
from shallow_signals.models.templates import read_template
from shallow_signals.models.tree import TOKEN_BUDGET, TreeBatch, batch_rows, fitted_inputs, row_length
from shallow_signals.models.trunk import Trunk, starting_from, stopping_at, weights_below

Progress = Callable[[int, int], None]  # tokens read so far, tokens in all


@contextmanager
def token_bar(text: str) -> Iterator[Progress]:
    """A bar that counts tokens, and what moves it."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    with tqdm(total=None, desc=text, unit="token", unit_scale=True) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def read_layout(
    model: Any,
    layout: Layout,
    token_budget: int,
    pad_id: int,
    progress: Progress | None,
    trunk: Trunk | None = None,
) -> dict[tuple[int, int, int], float]:
    """The score of each (pair, side, kept tokens).

    With a `trunk` (`read_states` of this layout) the layers that made it do not run; the scores are the same. One of
    other texts or other layers is an `InputError`.
    """
    starts = layout.row_starts()
    config = model.config.get_text_config()
    if config.pad_token_id is None:
        config.pad_token_id = pad_id  # the model's forward refuses batches without one, though nothing here reads it
    scores: dict[tuple[int, int, int], float] = {}
    if trunk is not None:
        trunk.refuse_others(model, layout.token_ids())
    with nullcontext() if trunk is None else starting_from(model, trunk.layers) as below:
        for batch, tree in _tree_batches(model, layout, token_budget, pad_id, progress):
            if trunk is not None and below is not None:
                below.states = _batch_states(trunk, starts, batch, tree)
            readings = [(place, reading) for place, index in enumerate(batch) for reading in layout.readings[index]]
            places = torch.tensor([(place, tree.starts[place][r.segment] + r.offset) for place, r in readings])
            with torch.inference_mode():
                values = read_scores(token_scores(model, tree.model_inputs()), places).tolist()
            for (_, r), value in zip(readings, values, strict=True):
                scores[r.pair, r.side, r.kept] = value
    return scores


def read_states(
    model: Any, layout: Layout, layers: int, token_budget: int, pad_id: int, progress: Progress | None
) -> Trunk:
    """What the first `layers` layers of `model` make of a layout, for `read_layout` with models that share them."""
    starts = layout.row_starts()
    states = torch.empty(starts[-1], model.config.get_text_config().hidden_size, dtype=next(model.parameters()).dtype)
    with stopping_at(model, layers) as made, torch.inference_mode():
        for batch, tree in _tree_batches(model, layout, token_budget, pad_id, progress):
            model.base_model(**fitted_inputs(model, tree.model_inputs()), use_cache=False)
            for index, row in zip(batch, made.pop(), strict=True):
                states[starts[index] : starts[index + 1]] = row[: starts[index + 1] - starts[index]]
    ids = torch.tensor(layout.token_ids(), dtype=torch.int32)
    return Trunk("trunk", layers, weights_below(model, layers), ids, states)


def _batch_states(trunk: Trunk, starts: Sequence[int], batch: Sequence[int], tree: TreeBatch) -> Tensor:
    """The trunk's states of a batch's rows, laid out as its tokens are: [rows, width, hidden size]."""
    states = trunk.states.new_zeros(*tree.input_ids.shape, trunk.states.shape[-1])
    for place, index in enumerate(batch):
        kept = trunk.states[starts[index] : starts[index + 1]]
        states[place, : len(kept)] = kept
    return states


def _tree_batches(
    model: Any, layout: Layout, token_budget: int, pad_id: int, progress: Progress | None
) -> Iterator[tuple[list[int], TreeBatch]]:
    """The rows of a layout in batches on the model's device, with their indices; progress is told as each is done."""
    widths = [row_length(row) for row in layout.rows]
    total, done = sum(widths), 0
    device = next(model.parameters()).device
    for batch in _batches(widths, token_budget):
        yield batch, batch_rows([layout.rows[index] for index in batch], pad_id).to(device)
        done += sum(widths[index] for index in batch)
        if progress is not None:
            progress(done, total)


def _batches(widths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Indices of rows of like width, widest first (what does not fit in memory fails at once)."""
    batch: list[int] = []
    for index in sorted(range(len(widths)), key=lambda index: -widths[index]):
        if batch and (len(batch) + 1) * widths[batch[0]] > token_budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


class Reader:
    """A loaded causal language model with its tokenizer, ready to read layouts."""

    def __init__(
        self, folder: Path, compute: Literal["auto", "float32", "bfloat16"] = "auto", attention: Attention = "sdpa"
    ) -> None:
        device = pick_device()
        self.tokenizer = load_tokenizer(folder)
        bos_ids = read_template(self.tokenizer, "auto").bos_ids
        self.bos_id = bos_ids[0] if bos_ids else None  # as in training: a token that opens every turn is no BOS
        self.pad_id: int = self.tokenizer.pad_token_id or 0
        self.token_budget = TOKEN_BUDGET[device.type]
        # FlashAttention takes no mask in which texts branch; the kernels give the same scores but for rounding.
        kernel: Attention = "eager" if attention == "eager" else "sdpa"
        self.model = with_grouped_attention(self._load(folder, pick_compute_dtype(compute, device), kernel, device))

    def _load(self, folder: Path, dtype: torch.dtype, kernel: Attention, device: torch.device) -> Any:
        return load_causal_lm(folder, dtype, kernel, device)


class RewardReader(Reader):
    """The same of a reward model."""

    def _load(self, folder: Path, dtype: torch.dtype, kernel: Attention, device: torch.device) -> Any:
        model = load_reward_model(folder, dtype, kernel, device)
        # The head stays in float32: scores rounded to bfloat16 tie, and a tie counts as wrong.
        head = score_head(model).float()
        head.register_forward_pre_hook(lambda _module, inputs: (inputs[0].float(),))
        return model
