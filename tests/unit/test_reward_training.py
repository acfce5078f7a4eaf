"""Fast reward-model training against the plain padded batch and stock TRL."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import RewardConfig, RewardTrainer

import checkpoints
import reward_setup as setup
from shallow_signals.config.recipes import Lora
from shallow_signals.files import InputError
from shallow_signals.models.heads import read_scores, token_scores
from shallow_signals.models.load import load_reward_model, load_tokenizer
from shallow_signals.models.templates import read_template
from shallow_signals.models.tree import TreeBatch, padded_width
from shallow_signals.training import pairs as layout
from shallow_signals.training import reward
from shallow_signals.training.pairs import PairIds, batch_pairs, cut_pair, read_pairs, row_shapes
from shallow_signals.training.rounding import LostUpdates
from shallow_signals.training.settings import trainer_arguments

Checkpoint = Callable[[Path], Path]
BOTH = pytest.mark.parametrize("checkpoint", [checkpoints.chatml, checkpoints.gemma])


@BOTH
@pytest.mark.parametrize("changes", [{}, {"sort_in_step": False}, {"share_prompt": False}, {"attention": "eager"}])
def test_a_step_has_the_gradient_of_the_plain_padded_batch(
    checkpoint: Checkpoint, changes: dict[str, Any], tmp_path: Path
) -> None:
    """Fourteen pairs in one step: micro-batches of 4, 4, 4 and 2."""
    base = checkpoint(tmp_path / "base")
    pairs = setup.random_pairs(14)
    fast = setup.fast_gradients(base, pairs, setup.recipe(**changes), tmp_path / "state")
    assert setup.difference(fast, setup.plain_gradients(base, pairs)) < 1e-5


def test_a_step_has_the_gradient_of_stock_trl(tmp_path: Path) -> None:
    base = checkpoints.gemma(tmp_path / "base")
    pairs = setup.random_pairs(16)
    texts = [setup.both_texts(pair) for pair in pairs]
    settings = setup.recipe(micro_batch=16)
    arguments = trainer_arguments(settings, seed=0, state=tmp_path / "state", steps_per_epoch=1)
    stock = RewardTrainer(
        model=load_reward_model(base, finished=False),
        args=RewardConfig(**arguments | {"save_strategy": "no", "disable_tqdm": True}),
        train_dataset=Dataset.from_dict({"chosen_ids": [t[0] for t in texts], "rejected_ids": [t[1] for t in texts]}),
        processing_class=load_tokenizer(base),
        callbacks=[catch := setup.CatchGradients()],
    )
    stock.train()
    fast = setup.fast_gradients(base, pairs, setup.recipe(), tmp_path / "state")
    assert setup.difference(fast, catch.steps[0]) < 1e-5


def test_wrong_ways_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative controls: a mask that lets rejected see chosen, and the mean of unequal micro-batches' means."""
    base = checkpoints.chatml(tmp_path / "base")
    pairs = setup.random_pairs(14)
    plain = setup.plain_gradients(base, pairs)

    def leaking(rows: Any, pad_id: int) -> TreeBatch:
        batch = batch_rows(rows, pad_id)
        batch.attention_mask = torch.ones_like(batch.attention_mask).tril()
        return batch

    batch_rows = layout.batch_rows
    with monkeypatch.context() as patch:
        patch.setattr(layout, "batch_rows", leaking)
        assert setup.difference(setup.fast_gradients(base, pairs, setup.recipe(), tmp_path / "s"), plain) > 1e-2

    def mean_of_means(self: Any, iterator: Any, number: int, device: Any) -> tuple[list[Any], None]:
        return [batch for _, batch in zip(range(number), iterator, strict=False)], None

    with monkeypatch.context() as patch:
        patch.setattr(reward.FastRewardTrainer, "get_batch_samples", mean_of_means)
        patch.setattr(reward.FastRewardTrainer, "loss_is_scaled_for_ga", False)
        assert setup.difference(setup.fast_gradients(base, pairs, setup.recipe(), tmp_path / "s"), plain) > 1e-2


@BOTH
def test_the_rejected_score_does_not_know_the_chosen(checkpoint: Checkpoint, tmp_path: Path) -> None:
    model = load_reward_model(checkpoint(tmp_path), finished=False)
    pairs = setup.random_pairs(8)
    others = [replace(pair, chosen=[token - 1 for token in pair.chosen]) for pair in pairs]
    with torch.no_grad():
        one, other = (batch_pairs(version, 0, share_prompt=True) for version in (pairs, others))
        scores, changed = token_scores(model, one.inputs), token_scores(model, other.inputs)
    torch.testing.assert_close(read_scores(scores, one.rejected), read_scores(changed, other.rejected))
    assert (read_scores(scores, one.chosen) - read_scores(changed, other.chosen)).abs().min() > 1e-4


@pytest.mark.parametrize("share", [True, False])
def test_the_score_is_read_at_the_last_token_also_where_padding_equals_it(share: bool, tmp_path: Path) -> None:
    """Llama-3 has no pad token, so its end of turn serves as one. The model's own pooling reads one token early."""
    base = checkpoints.llama3(tmp_path)
    model = load_reward_model(base, finished=False)
    tokenizer = load_tokenizer(base)
    closing = read_template(tokenizer, "auto").closing_ids
    assert closing == (tokenizer.convert_tokens_to_ids("<|eot_id|>"),) == (tokenizer.eos_token_id,)
    model.config.pad_token_id = tokenizer.eos_token_id
    pairs = setup.random_pairs(9, closing=closing)[3:]
    texts = [setup.both_texts(pair) for pair in pairs]
    batch = batch_pairs(pairs, tokenizer.eos_token_id, share)
    with torch.no_grad():
        scores = token_scores(model, batch.inputs)
        for places, side in ((batch.chosen, 0), (batch.rejected, 1)):
            assert batch.inputs["input_ids"][places[:, 0], places[:, 1]].tolist() == list(closing) * 6
            expected = setup.plain_scores(model, [text[side] for text in texts])
            torch.testing.assert_close(read_scores(scores, places), expected, atol=1e-5, rtol=1e-5)
            width = max(len(text[side]) for text in texts)
            ids = torch.tensor([text[side] + [tokenizer.eos_token_id] * (width - len(text[side])) for text in texts])
            pooled = model(input_ids=ids, attention_mask=None).logits[:, 0]
            assert (pooled - expected).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("checkpoint", "closing"),
    [
        (checkpoints.chatml, ["<|im_end|>", "Ċ"]),
        (checkpoints.gemma, ["<end_of_turn>", "Ċ"]),
        (checkpoints.llama3, ["<|eot_id|>"]),
    ],
)
def test_end_of_turn_kept_and_dropped(checkpoint: Checkpoint, closing: list[str], tmp_path: Path) -> None:
    """What the scored token and those before it are, after an example response of two tokens."""
    tokenizer = load_tokenizer(checkpoint(tmp_path / "base"))
    shards = setup.write_shards(tmp_path / "shards", [PairIds([300, 301], [302, 303], [304, 305, 306])] * 2)
    for kept in (closing, []):
        ids = tokenizer.convert_tokens_to_ids(kept)
        assert not kept or tuple(ids) == read_template(tokenizer, "auto").closing_ids
        data, _ = read_pairs(shards, closing=ids, max_length=64)
        batch = batch_pairs([PairIds.from_row(data[0])], tokenizer.pad_token_id or 0, share_prompt=True)
        expected = [300, 301, 302, 303, *ids, 304, 305, 306, *ids]
        row = batch.inputs["input_ids"][0].tolist()
        assert row == expected + [tokenizer.pad_token_id or 0] * (padded_width(len(expected)) - len(expected))
        assert batch.chosen.tolist() == [[0, 3 + len(ids)]]
        assert batch.rejected.tolist() == [[0, 6 + 2 * len(ids)]]


def test_long_pairs_are_cut_on_the_left() -> None:
    prompt, chosen, rejected, closing = [9, 1, 2, 3], [10, 11], [20, 21, 22, 23], [5]
    for limit in range(2, 12):
        for bos in (None, 9):
            pair = cut_pair(prompt, chosen, rejected, closing, limit, bos)
            for text, response in zip(setup.both_texts(pair), (chosen, rejected), strict=True):
                whole = [*prompt, *response, *closing]
                cut = whole[-limit:] if bos is None else [9, *whole[1:][1 - limit :]]
                assert text == (whole if len(whole) <= limit else cut)
    even = cut_pair(prompt, [10, 11], [20, 21], closing, 5)
    assert (even.prompt, even.rejected_prompt) == ([2, 3], None)
    assert cut_pair(prompt, chosen, rejected, closing, 7).rejected_prompt == [2, 3]


def test_reading_shards(tmp_path: Path) -> None:
    pairs = [PairIds([9, 1, 2], [10, 11], [20]), PairIds([], [12], [22, 23, 24, 25, 26]), PairIds([8], [7], [6])]
    data, cut_left = read_pairs(setup.write_shards(tmp_path, pairs), closing=[5], max_length=5)
    assert cut_left == 2
    assert data[0] == {
        "prompt_ids": [1, 2],
        "chosen_ids": [10, 11, 5],
        "rejected_ids": [20, 5],
        "rejected_prompt_ids": [9, 1, 2],
    }
    assert data[1]["rejected_ids"] == [23, 24, 25, 26, 5]
    for share, expected in ((True, ([2, 1, 1], [5, 7, 5])), (False, ([2, 2, 2], [5, 5, 3]))):
        rows, widths, tokens = row_shapes(data, share)
        assert (rows.tolist(), widths.tolist()) == expected
        laid_out = [batch_pairs([PairIds.from_row(row)], 0, share).inputs["input_ids"] for row in data]
        assert [tuple(ids.shape) for ids in laid_out] == [(r, padded_width(w)) for r, w in zip(*expected, strict=True)]
        assert tokens == sum(int((ids != 0).sum()) for ids in laid_out)
    with pytest.raises(InputError, match=r"no valid-\*"):
        read_pairs(tmp_path, split="valid", closing=[], max_length=8)
    setup.write_shards(tmp_path / "empty", [PairIds([1], [], [2])])
    with pytest.raises(InputError, match="empty response"):
        read_pairs(tmp_path / "empty", closing=[5], max_length=8)


def test_two_processes_have_the_gradient_of_one(tmp_path: Path) -> None:
    """Gloo, two processes; 16 pairs, so that nothing is trimmed. The script is tests/two_processes.py."""
    base = checkpoints.chatml(tmp_path / "base")
    script = Path(setup.__file__).with_name("two_processes.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*torchrun, str(script), str(base), str(tmp_path)], check=True, timeout=120)
    together = torch.load(tmp_path / "gradients.pt", weights_only=True)
    pairs = setup.random_pairs(16)
    alone = setup.fast_gradients(base, pairs, setup.recipe(), tmp_path / "state")
    assert setup.difference(together, alone) < 1e-5
    assert setup.difference(together, setup.plain_gradients(base, pairs)) < 1e-5
    half = {name: gradient / 2 for name, gradient in alone.items()}
    assert setup.difference(half, alone) > 1e-2  # what a forgotten factor of the processes would give
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert sorted(seen[0] + seen[1]) == sorted(map(str, pairs))


@pytest.mark.parametrize("lora", [None, Lora(rank=4, alpha=8)])
def test_training_learns_and_writes_an_ordinary_checkpoint(lora: Lora | None, tmp_path: Path) -> None:
    base = checkpoints.chatml(tmp_path / "base")
    pairs = setup.planted(70)
    shards = setup.write_shards(tmp_path / "shards", pairs)
    settings = setup.recipe(epochs=2.5, lora=lora, learning_rate=1e-2, optimizer="paged_adamw_32bit")
    facts = reward.train_reward_model(shards, base, settings, 0, tmp_path / "out", tmp_path / "state")
    assert (facts["steps"], facts["pairs"], facts["pairs_seen"]) == (13, 70, 70 + 70 + 48)
    assert (facts["optimizer"], facts["compute"], facts["dropped_per_epoch"]) == ("adamw_torch", "float32", 0)
    assert facts["tokens_with_padding"] > 2.5 * 0.9 * facts["tokens_per_epoch"]
    assert facts["last_loss"] < 0.3 < 0.5 < facts["first_loss"]
    assert not list((tmp_path / "state").glob("checkpoint-*"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    model = load_reward_model(tmp_path / "out")
    closing = list(read_template(load_tokenizer(tmp_path / "out"), "auto").closing_ids)
    with torch.no_grad():
        texts = [[text + closing for text in setup.both_texts(pair)] for pair in pairs]
        chosen, rejected = (setup.plain_scores(model, [text[side] for text in texts]) for side in (0, 1))
    assert (chosen > rejected).float().mean() > 0.95
    before = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    again = reward.train_reward_model(shards, base, settings, 0, tmp_path / "out", tmp_path / "state")
    assert again == facts
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == before


def test_updates_that_bfloat16_swallows_are_counted() -> None:
    """Between 1 and 2 bfloat16 numbers lie 2^-7 apart, around 2^-5 2^-12: a step of 2^-10 is lost or not.

    The third weight has no gradient; at a learning rate of zero nothing is due.
    """
    model = torch.nn.Linear(3, 1, bias=False, dtype=torch.bfloat16)
    for rate, expected in ((0.0, None), (2.0**-10, 0.5)):
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        model.weight.data = torch.tensor([[1.5, 2.0**-5, 1.5]], dtype=torch.bfloat16)
        model.weight.grad = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.bfloat16)
        count = LostUpdates(every=2)
        for step in (2, 3):  # the second is not looked at
            arguments = {"args": None, "state": SimpleNamespace(global_step=step), "control": None, "model": model}
            count.on_pre_optimizer_step(**arguments)
            optimizer.step()
            count.on_optimizer_step(**arguments, optimizer=optimizer)
        assert count.share == expected


def test_weights_kept_in_bfloat16(tmp_path: Path) -> None:
    """At a rate of 1e-6 nearly every update of weights around 0.2 is lost."""
    base = checkpoints.chatml(tmp_path / "base")
    shards = setup.write_shards(tmp_path / "shards", setup.planted(32))
    settings = setup.recipe(weights="bfloat16", compute="auto", learning_rate=1e-6)
    facts = reward.train_reward_model(shards, base, settings, 0, tmp_path / "out", tmp_path / "state")
    assert (facts["weights"], facts["compute"]) == ("bfloat16", "bfloat16")
    assert 0.9 < facts["updates_lost_to_rounding"] <= 1.0


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    base = checkpoints.chatml(tmp_path / "base")
    shards = setup.write_shards(tmp_path / "shards", setup.random_pairs(8)[3:])

    def train(**changes: Any) -> None:
        reward.train_reward_model(shards, base, setup.recipe(**changes), 0, tmp_path / "out", tmp_path / "state")

    with pytest.raises(InputError, match="global_batch 16 is no multiple of micro_batch 5"):
        train(micro_batch=5)
    with pytest.raises(InputError, match="bfloat16 can't be computed with in float32"):
        train(weights="bfloat16")
    assert not (tmp_path / "out").exists()
