"""Trees of segments against what each token should see, and against the same texts run one by one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

import checkpoints
from shallow_signals.files import InputError
from shallow_signals.models.load import load_causal_lm
from shallow_signals.models.tree import (
    Row,
    Segment,
    batch_rows,
    fitted_inputs,
    padded_width,
    refuse_unsupported,
    row_length,
)


def random_row(rng: np.random.Generator) -> Row:
    """Up to seven segments of zero to six tokens, with random parents (sometimes none) and random cuts."""
    row: list[Segment] = []
    for index in range(rng.integers(1, 8)):
        ids = rng.integers(5, 400, rng.integers(0, 7)).tolist()
        if index == 0 or rng.random() < 0.15:
            row.append(Segment(ids))
            continue
        parent = int(rng.integers(0, index))
        keep = None if rng.random() < 0.3 else int(rng.integers(0, len(row[parent].ids) + 1))
        row.append(Segment(ids, parent, keep))
    return row


def path_to(row: Row, index: int, keep: int | None = None) -> list[tuple[int, int]]:
    """(segment, token) of everything that the text of a segment's first `keep` tokens is made of, in order."""
    segment = row[index]
    before = [] if segment.parent is None else path_to(row, segment.parent, segment.keep)
    return before + [(index, token) for token in range(len(segment.ids))[:keep]]


def test_mask_and_positions_follow_the_definition() -> None:
    rng = np.random.default_rng(0)
    rows = [random_row(rng) for _ in range(60)]
    batch = batch_rows(rows, pad_id=1)
    width = padded_width(max(row_length(row) for row in rows))
    assert batch.input_ids.shape == (60, width)
    assert batch.attention_mask.shape == (60, 1, width, width)
    assert batch.attention_mask.dtype == torch.bool
    for r, row in enumerate(rows):
        expected = torch.eye(width, dtype=torch.bool)
        for s, segment in enumerate(row):
            path = path_to(row, s)
            places = [batch.starts[r][owner] + token for owner, token in path]
            for token in range(len(segment.ids)):
                here = batch.starts[r][s] + token
                position = len(path) - len(segment.ids) + token
                assert batch.input_ids[r, here] == segment.ids[token]
                assert batch.position_ids[r, here] == position
                expected[here, places[: position + 1]] = True
        assert torch.equal(batch.attention_mask[r, 0], expected)
        assert (batch.input_ids[r, row_length(row) :] == 1).all()


def test_widths_are_few_and_a_sixteenth_more_at_most() -> None:
    widths = [padded_width(longest) for longest in range(1, 4097)]
    for longest, width in enumerate(widths, start=1):
        assert longest <= width and width % 8 == 0
        assert width - longest < max(8, longest / 16)
    assert all(len({width for width in widths if 2**k < width <= 2 ** (k + 1)}) == 16 for k in range(7, 12))


@pytest.mark.parametrize("checkpoint", [checkpoints.chatml, checkpoints.gemma])
def test_each_text_of_a_tree_equals_its_own_forward_pass(checkpoint: Callable[[Path], Path], tmp_path: Path) -> None:
    model = load_causal_lm(checkpoint(tmp_path))
    rng = np.random.default_rng(1)
    rows = [random_row(rng) for _ in range(12)]
    batch = batch_rows(rows, pad_id=int(model.config.eos_token_id))
    with torch.no_grad():
        logits = model(**batch.model_inputs()).logits
    assert torch.isfinite(logits).all()
    compared = 0
    for r, row in enumerate(rows):
        for s, segment in enumerate(row):
            if not segment.ids:
                continue
            text = [row[owner].ids[token] for owner, token in path_to(row, s)]
            with torch.no_grad():
                alone = model(torch.tensor([text])).logits[0, -len(segment.ids) :]
            start = batch.starts[r][s]
            torch.testing.assert_close(logits[r, start : start + len(segment.ids)], alone, atol=2e-5, rtol=1e-5)
            compared += len(segment.ids)
    assert compared > 100


def test_a_leak_between_branches_is_seen(tmp_path: Path) -> None:
    """Negative control: with one wrong entry of the mask, or positions that run on, the comparison above fails."""
    model = load_causal_lm(checkpoints.chatml(tmp_path))
    row = [Segment([10, 11, 12]), Segment([20, 21], 0), Segment([30, 31], 0)]
    with torch.no_grad():
        alone, last = model(torch.tensor([[10, 11, 12, 30, 31]])).logits[0, -1], row_length(row) - 1
        right = batch_rows([row], 0)
        assert (model(**right.model_inputs()).logits[0, last] - alone).abs().max() < 1e-5
        leaking = batch_rows([row], 0)
        leaking.attention_mask[0, 0, 6, 3] = True  # the last token sees the other branch's first
        assert (model(**leaking.model_inputs()).logits[0, last] - alone).abs().max() > 1e-2
        running_on = batch_rows([row], 0)
        running_on.position_ids[0] = torch.arange(running_on.input_ids.shape[1])
        assert (model(**running_on.model_inputs()).logits[0, last] - alone).abs().max() > 1e-2


def test_eager_attention_gets_a_mask_that_it_can_add(tmp_path: Path) -> None:
    folder = checkpoints.chatml(tmp_path)
    model, sdpa = load_causal_lm(folder, attention="eager"), load_causal_lm(folder)
    batch = batch_rows([[Segment([10, 11, 12]), Segment([20, 21], 0), Segment([30, 31], 0)], [Segment([5])]], 0)
    with torch.no_grad():
        expected = sdpa(**fitted_inputs(sdpa, batch.model_inputs())).logits
        torch.testing.assert_close(model(**fitted_inputs(model, batch.model_inputs())).logits, expected)
        assert (model(**batch.model_inputs()).logits - expected).abs().max() > 1e-2  # negative control: unfitted


def test_a_plain_row_is_ordinary_causal_attention(tmp_path: Path) -> None:
    model = load_causal_lm(checkpoints.chatml(tmp_path))
    texts = [[7, 8, 9, 10], [11, 12]]
    batch = batch_rows([[Segment(text)] for text in texts], pad_id=0)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with torch.no_grad():
        plain = model(torch.tensor([[7, 8, 9, 10], [11, 12, 0, 0]]), attention_mask=mask).logits
        tree = model(**batch.model_inputs()).logits
    torch.testing.assert_close(tree[:, :4][mask.bool()], plain[mask.bool()], atol=1e-5, rtol=1e-5)


def test_the_pad_id_changes_nothing(tmp_path: Path) -> None:
    model = load_causal_lm(checkpoints.chatml(tmp_path))
    rows: list[Row] = [[Segment([5, 6, 7, 8, 9])], [Segment([]), Segment([3, 3], 0), Segment([3], 0)]]
    with torch.no_grad():
        first, second = (model(**batch_rows(rows, pad).model_inputs()).logits[1, :3] for pad in (3, 200))
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([Segment([1]), Segment([2], 1)], "no earlier segment"),
        ([Segment([1]), Segment([2], 2)], "no earlier segment"),
        ([Segment([1], -1)], "no earlier segment"),
        ([Segment([1, 2]), Segment([3], 0, 3)], "keep 3 lies outside"),
        ([Segment([1, 2]), Segment([3], 0, -1)], "keep -1 lies outside"),
    ],
)
def test_impossible_trees_are_refused(row: Row, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batch_rows([row], 0)


def test_attention_that_takes_no_tree_is_refused() -> None:
    shape = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    refuse_unsupported(LlamaForCausalLM(LlamaConfig(**shape, **heads)))
    refuse_unsupported(Qwen2ForCausalLM(Qwen2Config(**shape, **heads)))
    flash = LlamaForCausalLM(LlamaConfig(**shape, **heads))
    flash.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match="flash_attention_2"):
        refuse_unsupported(flash)
    hybrid = Qwen2Config(**shape, **heads, use_sliding_window=True, sliding_window=8, max_window_layers=1)
    with pytest.raises(InputError, match="sliding_attention"):
        refuse_unsupported(Qwen2ForCausalLM(hybrid))
    with pytest.raises(InputError, match="8 tokens"):
        refuse_unsupported(MistralForCausalLM(MistralConfig(**shape, **heads, sliding_window=8)))
