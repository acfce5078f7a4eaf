"""LoRA adapters: where they sit, how precise they are, and that what they add in fewer passes is what peft adds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

import checkpoints
import reward_setup as setup
from shallow_signals.config.recipes import Lora
from shallow_signals.files import InputError
from shallow_signals.models.load import load_reward_model
from shallow_signals.training import adapters, reward

IDS = torch.arange(40).view(2, 20)


def adapted(base: Path, dtype: torch.dtype, lora: Lora) -> Any:
    """A reward model whose adapter changes its scores."""
    checkpoints.chatml(base)
    adapter = adapters.lora_config(setup.recipe(lora=lora), "SEQ_CLS", trained_whole=["score"])
    model = load_reward_model(base, dtype, finished=False, seed=0)
    model = peft.get_peft_model(model, adapter, autocast_adapter_dtype=False)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model


def test_layers_below_the_first_adapted_one_stay_as_they_are(tmp_path: Path) -> None:
    base = checkpoints.chatml(tmp_path / "base")
    shards = setup.write_shards(tmp_path / "shards", setup.planted(70))
    settings = setup.recipe(epochs=2.5, lora=Lora(rank=4, alpha=8, first_layer=1), learning_rate=1e-2)
    reward.train_reward_model(shards, base, settings, 0, tmp_path / "out", tmp_path / "state")
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "out"))
    learnt = {name.split(".")[2] for name in before if ".layers." in name and not before[name].equal(after[name])}
    assert learnt == {"1"}
    assert {name.split(".")[2] for name in before if ".layers." in name} == {"0", "1"}
    settings = setup.recipe(lora=Lora(first_layer=2))
    with pytest.raises(InputError, match=r"lora.first_layer 2: .*base has layers 0 to 1"):
        reward.train_reward_model(shards, base, settings, 0, tmp_path / "other", tmp_path / "other_state")


def test_an_adapter_on_bfloat16_weights_is_trained_in_float32(tmp_path: Path) -> None:
    base = checkpoints.chatml(tmp_path / "base")
    shards = setup.write_shards(tmp_path / "shards", setup.planted(70))
    settings = setup.recipe(epochs=2.5, lora=Lora(rank=4, alpha=8), learning_rate=1e-2, compute="bfloat16")
    facts = reward.train_reward_model(shards, base, settings, 0, tmp_path / "out", tmp_path / "state")
    assert facts["compute"] == "bfloat16"
    assert load_file(tmp_path / "out" / "model.safetensors")["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert facts["last_loss"] < 0.3 < 0.5 < facts["first_loss"]


def test_an_adapter_that_reads_its_inputs_as_they_come_computes_the_same(tmp_path: Path) -> None:
    model = adapted(tmp_path / "base", torch.bfloat16, Lora(rank=4, alpha=8))

    def scores(precise: bool) -> torch.Tensor:
        if precise:
            adapters.keep_adapter_precise(model)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            found: torch.Tensor = model(input_ids=IDS).logits
        return found

    assert torch.equal(scores(precise=False), scores(precise=True))
    types = {weight.dtype for weight in model.parameters() if weight.requires_grad}
    assert types == {torch.float32}
    assert {weight.dtype for weight in model.parameters()} == {torch.float32, torch.bfloat16}


def test_an_adapter_added_in_one_pass_computes_and_learns_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(tmp_path / "base", torch.float32, Lora(rank=4, alpha=12, dropout=0.2)).train()

    def learned() -> dict[str, torch.Tensor]:
        torch.manual_seed(0)  # of the dropout
        model.zero_grad()
        scores = model(input_ids=IDS).logits
        scores.square().sum().backward()
        found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        return {"scores": scores.detach(), **found}

    theirs = learned()
    with adapters.added_once(model):
        ours = learned()
        monkeypatch.setattr(adapters.AddedOnce, "forward", staticmethod(lambda *_, result, **__: result))
        without = learned()["scores"]
    assert len(theirs) > 10
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))
    assert not torch.allclose(without, theirs["scores"], rtol=1e-2)  # the adapter counts, and is added by ours inside
    assert torch.equal(learned()["scores"], theirs["scores"])  # outside by peft's own


def test_training_adds_its_adapter_in_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> torch.Tensor:
        raise ArithmeticError("added in one pass")

    monkeypatch.setattr(adapters.AddedOnce, "forward", staticmethod(refuse))
    base = checkpoints.chatml(tmp_path / "base")
    shards = setup.write_shards(tmp_path / "shards", setup.planted(32))
    with pytest.raises(ArithmeticError, match="added in one pass"):
        reward.train_reward_model(shards, base, setup.recipe(lora=Lora()), 0, tmp_path / "out", tmp_path / "state")
