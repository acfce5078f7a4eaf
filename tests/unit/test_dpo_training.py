"""Fast DPO against the plain padded batch, the closed form and stock TRL."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from trl import DPOConfig, DPOTrainer

import checkpoints
import dpo_setup as dpo
import reward_setup as setup
from shallow_signals.config.recipes import Lora
from shallow_signals.files import InputError
from shallow_signals.models.load import load_causal_lm, load_tokenizer
from shallow_signals.models.templates import read_template
from shallow_signals.models.tree import TreeBatch
from shallow_signals.signal.logprob_files import score_logprobs
from shallow_signals.training import pairs as layout
from shallow_signals.training.dpo import train_dpo
from shallow_signals.training.pairs import PairIds, batch_pairs, read_pairs, response_targets
from shallow_signals.training.settings import trainer_arguments

Checkpoint = Callable[[Path], Path]
BOTH = pytest.mark.parametrize("checkpoint", [checkpoints.chatml, checkpoints.gemma])


def references_of(base: Path, pairs: list[PairIds]) -> torch.Tensor:
    """Those of another model, so that pairs have different weights in the gradient."""
    with torch.no_grad():
        return dpo.plain_logps(dpo.other_model(base), pairs)


@BOTH
@pytest.mark.parametrize("changes", [{}, {"sort_in_step": False}, {"share_prompt": False}, {"attention": "eager"}])
def test_a_step_has_the_gradient_of_the_plain_padded_batch(
    checkpoint: Checkpoint, changes: dict[str, Any], tmp_path: Path
) -> None:
    """Fourteen pairs in one step: micro-batches of 4, 4, 4 and 2; empty prompts and unequal ones are among them."""
    base = checkpoint(tmp_path / "base")
    pairs = setup.random_pairs(14)
    references = references_of(base, pairs)
    settings = dpo.recipe(**changes)
    fast = dpo.fast_gradients(base, pairs, references, settings, tmp_path / "state")
    assert setup.difference(fast, dpo.plain_gradients(base, pairs, references, settings.beta)) < 1e-5


@BOTH
def test_a_step_has_the_gradient_of_stock_trl(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """TRL gets conversations, tokenises and scores them itself and takes all 14 pairs as one batch."""
    base = checkpoint(tmp_path / "base")
    rows = dpo.conversations(14)
    shards = dpo.cut_shards(base, dpo.tokens_file(base, rows, tmp_path), "full", tmp_path / "shards")
    closing = read_template(load_tokenizer(base), "auto").closing_ids
    settings = dpo.recipe()
    data, _ = read_pairs(shards, closing=closing, max_length=settings.max_length)
    pairs = [PairIds.from_row(row) for row in data]
    arguments = trainer_arguments(dpo.recipe(micro_batch=16), seed=0, state=tmp_path / "state", steps_per_epoch=1)
    stock = DPOTrainer(
        model=load_causal_lm(base),
        ref_model=dpo.other_model(base),
        args=DPOConfig(
            **arguments | {"save_strategy": "no", "disable_tqdm": True, "beta": settings.beta},
            precompute_ref_log_probs=True,
        ),
        train_dataset=Dataset.from_list(
            [
                {"prompt": row["prompt"]}
                | {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
                for row in rows
            ]
        ),
        processing_class=load_tokenizer(base),
        callbacks=[catch := setup.CatchGradients()],
    )
    for row, pair in zip(stock.train_dataset, pairs, strict=True):
        assert (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) == (pair.prompt, pair.chosen, pair.rejected)
    stock.train()
    references = references_of(base, pairs)
    fast = dpo.fast_gradients(base, pairs, references, settings, tmp_path / "state")
    assert setup.difference(fast, catch.steps[0]) < 1e-5
    wrong = dpo.fast_gradients(base, pairs, references.roll(1, 0), settings, tmp_path / "state")
    assert setup.difference(wrong, catch.steps[0]) > 1e-2  # other pairs' references are seen


def test_wrong_ways_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative controls: a mask that lets rejected see chosen, and tokens predicted one place late."""
    base = checkpoints.chatml(tmp_path / "base")
    pairs = setup.random_pairs(14)
    references = references_of(base, pairs)
    plain = dpo.plain_gradients(base, pairs, references, dpo.recipe().beta)

    def leaking(rows: Any, pad_id: int) -> TreeBatch:
        batch = batch_rows(rows, pad_id)
        batch.attention_mask = torch.ones_like(batch.attention_mask).tril()
        return batch

    batch_rows = layout.batch_rows
    with monkeypatch.context() as patch:
        patch.setattr(layout, "batch_rows", leaking)
        leaked = dpo.fast_gradients(base, pairs, references, dpo.recipe(), tmp_path / "s")
    assert setup.difference(leaked, plain) > 1e-2

    def late(*arguments: Any) -> layout.Targets:
        targets = response_targets(*arguments)
        return replace(targets, places=targets.places + 1)

    with monkeypatch.context() as patch:
        patch.setattr("shallow_signals.training.dpo.response_targets", late)
        shifted = dpo.fast_gradients(base, pairs, references, dpo.recipe(), tmp_path / "s")
    assert setup.difference(shifted, plain) > 1e-2


@pytest.mark.parametrize("share", [True, False])
def test_every_response_token_has_its_place(share: bool) -> None:
    pairs = [
        PairIds([1, 2], [3, 4], [5]),
        PairIds([], [6, 7], [8, 9, 10]),  # nothing precedes the 6 and the 8
        PairIds([11, 12], [13], [14, 15], [12]),
    ]
    ids = batch_pairs(pairs, 0, share).inputs["input_ids"]
    targets = response_targets(pairs, share, ids.shape[1])
    assert (targets.where.diff() >= 0).all()
    before = ids.flatten()[targets.places[targets.where]].tolist()
    found = sorted(zip(targets.responses.tolist(), before, targets.tokens.tolist(), strict=True))
    expected = [(0, 2, 3), (0, 3, 4), (1, 2, 5), (2, 6, 7), (3, 8, 9), (3, 9, 10)]
    assert found == [*expected, (4, 12, 13), (5, 12, 14), (5, 14, 15)]


def test_the_loss_is_the_closed_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pairs by hand, beta 0.1: log-ratios +1 and -1, so margin 0.2; and -3 and +2, so margin -0.5."""
    base = checkpoints.chatml(tmp_path / "base")
    pairs = setup.random_pairs(5)[3:]
    reference = torch.tensor([[-11.0, -11.0], [-20.0, -7.0]])
    trainer = dpo.trainer_on(base, pairs, reference, dpo.recipe(beta=0.1), tmp_path / "state")
    monkeypatch.setattr(trainer, "logps", lambda model, pairs: torch.tensor([[-10.0, -12.0], [-23.0, -5.0]]).double())
    inputs = {"pairs": pairs, "reference": reference}
    losses = [math.log(1 + math.exp(-0.2)), math.log(1 + math.exp(0.5))]
    assert losses == pytest.approx([0.598139, 0.974077], abs=1e-6)
    assert trainer.margins(trainer.model, inputs).tolist() == pytest.approx([0.2, -0.5])
    assert trainer.compute_loss(trainer.model, inputs).item() == pytest.approx(sum(losses) / 2)
    assert trainer.compute_loss(trainer.model, inputs, num_items_in_batch=16).item() == pytest.approx(sum(losses) / 16)


@pytest.mark.parametrize("lora", [None, Lora(rank=4, alpha=8)])
def test_training_learns_and_writes_an_ordinary_checkpoint(lora: Lora | None, tmp_path: Path) -> None:
    base = checkpoints.chatml(tmp_path / "base")
    tokens = dpo.tokens_file(base, dpo.conversations(70), tmp_path)
    shards = dpo.cut_shards(base, tokens, "full", tmp_path / "shards")
    settings = dpo.recipe(epochs=2.5, lora=lora, learning_rate=1e-2 if lora else 2e-3)
    facts = train_dpo(shards, base, None, settings, 0, tmp_path / "out", tmp_path / "state")
    assert (facts["steps"], facts["pairs"], facts["pairs_seen"]) == (13, 70, 70 + 70 + 48)
    assert (facts["references_read"], facts["references_scored"], facts["beta"]) == (0, 70, settings.beta)
    assert facts["first_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert facts["last_loss"] < 0.3
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["finished.json", "model"]
    files = {"model.safetensors", "config.json", "generation_config.json", "chat_template.jinja"}
    files |= {"tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == files | ({"adapter"} if lora else set())
    policy, reference = load_causal_lm(tmp_path / "out"), load_causal_lm(base)
    data, _ = read_pairs(shards, closing=(), max_length=256)
    pairs = [PairIds.from_row(row) for row in data]
    with torch.no_grad():
        logps = dpo.plain_logps(policy, pairs)
        chosen, rejected = (logps - dpo.plain_logps(reference, pairs)).unbind(1)
        assert (chosen > rejected).float().mean() > 0.9
        if lora:
            adapter = tmp_path / "out" / "adapter"
            assert {path.name for path in adapter.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
            assert str(tmp_path) not in (adapter / "adapter_config.json").read_text()
            switched = PeftModel.from_pretrained(reference, str(adapter)).eval()
            torch.testing.assert_close(dpo.plain_logps(switched, pairs), logps, atol=1e-3, rtol=1e-5)
    assert train_dpo(shards, base, None, settings, 0, tmp_path / "out", tmp_path / "state") == facts


def test_weights_kept_in_bfloat16(tmp_path: Path) -> None:
    """The first loss is ln 2 within what bfloat16 allows; with references of a model far away it is not."""
    base = checkpoints.chatml(tmp_path / "base")
    tokens = dpo.tokens_file(base, dpo.conversations(32), tmp_path)
    shards = dpo.cut_shards(base, tokens, "head50", tmp_path / "shards")
    settings = dpo.recipe(weights="bfloat16", compute="auto", learning_rate=1e-6)
    facts = train_dpo(shards, base, None, settings, 0, tmp_path / "out", tmp_path / "state")
    assert (facts["weights"], facts["compute"]) == ("bfloat16", "bfloat16")
    assert facts["first_loss"] == pytest.approx(math.log(2), abs=0.05)
    assert 0.9 < facts["updates_lost_to_rounding"] <= 1.0
    dpo.other_model(base, spread=0.2).save_pretrained(tmp_path / "other")
    load_tokenizer(base).save_pretrained(tmp_path / "other")
    arrays = tmp_path / "other.parquet"
    score_logprobs(tmp_path / "other", tokens, arrays, tmp_path / "scoring", cuts=[50], max_length=256)
    with pytest.raises(InputError, match="miss ln 2"):
        train_dpo(shards, base, arrays, settings, 0, tmp_path / "out", tmp_path / "second")


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    base = checkpoints.chatml(tmp_path / "base")
    shards = setup.write_shards(tmp_path / "shards", setup.random_pairs(8)[3:])
    for changes, message in (
        ({"micro_batch": 5}, "global_batch 16 is no multiple of micro_batch 5"),
        ({"weights": "bfloat16"}, "bfloat16 can't be computed with in float32"),
    ):
        with pytest.raises(InputError, match=message):
            train_dpo(shards, base, None, dpo.recipe(**changes), 0, tmp_path / "out", tmp_path / "state")
