"""The planner's arithmetic against PyTorch's FLOP counter, the trainers' own rows, and published sizes."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

import checkpoints
import dpo_setup as dpo
import reward_setup as setup
from shallow_signals.config.load import load_study
from shallow_signals.config.planning import ModelShape
from shallow_signals.config.recipes import DPORecipe, Lora, Recipe
from shallow_signals.config.truncation import parse
from shallow_signals.data.truncate import nominal_range
from shallow_signals.evaluation.scores import score_pairs
from shallow_signals.models.load import load_causal_lm, load_reward_model
from shallow_signals.models.logprobs import PairTokens, pair_row
from shallow_signals.models.tree import row_length
from shallow_signals.planning import memory
from shallow_signals.planning.calibrate import (
    Machine,
    Speed,
    calibrate,
    micro_batches,
    random_reward_model,
    typical_pairs,
)
from shallow_signals.planning.dag import parse_jobs
from shallow_signals.planning.lengths import Lengths, cut, scoring_rows, training_rows
from shallow_signals.planning.memory import Fit, fit_training, free_memory, too_little_here, training_bytes
from shallow_signals.planning.report import add_up
from shallow_signals.planning.shape import body_flops, parameters, passes_of, read_shape, vocabulary_flops
from shallow_signals.planning.work import Work
from shallow_signals.training.pairs import PairIds, cut_pair, row_shapes

ROOT = Path(__file__).resolve().parents[2]
STUDY = load_study(yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8")))
SHAPE = ModelShape(hidden=32, layers=2, intermediate=64, heads=4, kv_heads=2, head_dim=8, vocabulary=500, tied=True)
GEMMA, LLAMA = STUDY.planning.models["gemma_2b_it"], STUDY.planning.models["llama31_8b_instruct"]


def lengths(pairs: int, closing: int = 2, seed: int = 0) -> Lengths:
    draw = np.random.default_rng(seed)
    prompt, chosen, rejected = (draw.integers(1, high, pairs).astype(float) for high in (40, 60, 60))
    return Lengths(prompt, chosen, rejected, pairs, closing)


def test_halves_are_the_pairs_that_the_shards_keep() -> None:
    """By the prompt's hash: seldom as many in one as in the other; of data that is not here, one half each."""
    known = replace(lengths(5), half=np.array([1, 2, 2, 1, 2]))
    first, second = (cut(known, parse(name)) for name in ("half1", "half2"))
    assert (first.pairs, second.pairs) == (2, 3)
    assert first.chosen.tolist() == known.chosen[[0, 3]].tolist()
    assert second.prompt.tolist() == known.prompt[[1, 2, 4]].tolist()
    assert cut(lengths(5), parse("half1")).pairs == 2.5


def test_parameters_are_the_published_ones() -> None:
    assert parameters(GEMMA) == 2_506_172_416
    assert parameters(LLAMA) == 8_030_261_248


@pytest.mark.parametrize("checkpoint", [checkpoints.gemma, checkpoints.llama3])
def test_parameters_are_those_of_the_model(checkpoint: Any, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    shape = read_shape(folder)
    assert parameters(shape) == load_causal_lm(folder).num_parameters()
    assert parameters(shape, reward_model=True) == load_reward_model(folder, finished=False).num_parameters()


def same_pairs(count: int = 8) -> list[PairIds]:
    """Pairs of one length, so that nothing is padded."""
    draw = np.random.default_rng(0)
    return [PairIds(*(draw.integers(260, 450, size).tolist() for size in (30, 25, 41))) for _ in range(count)]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("checkpoint", [checkpoints.gemma, checkpoints.chatml])
def test_training_flops_are_those_that_torch_counts(checkpoint: Any, share: bool, tmp_path: Path) -> None:
    """A whole forward and backward of our reward trainer and of our DPO trainer.

    Eager attention does the same products; torch does not count those of its fused kernel on a CPU.
    """
    base = checkpoint(tmp_path / "base")
    shape, pairs = read_shape(base), same_pairs()
    widths = np.full(8, 96.0) if share else np.array([55.0, 71.0] * 8)
    reward = setup.trainer_on(
        base, pairs, setup.recipe(share_prompt=share, micro_batch=8, attention="eager"), tmp_path / "r"
    )
    if not share:
        widths[:] = 71.0  # the trainer pads the rows of a batch
    with FlopCounterMode(display=False) as counted:
        reward.compute_loss(reward.model, {"pairs": pairs}).backward()
    assert 3 * body_flops(shape, widths) == pytest.approx(counted.get_total_flops(), rel=0.05)
    assert 2 * body_flops(shape, widths) < 0.8 * counted.get_total_flops()

    settings = dpo.recipe(share_prompt=share, micro_batch=8, attention="eager")
    policy = dpo.trainer_on(base, pairs, torch.zeros(8, 2), settings, tmp_path / "d")
    with FlopCounterMode(display=False) as counted:
        policy.compute_loss(policy.model, {"pairs": pairs, "reference": torch.zeros(8, 2)}).backward()
    head = vocabulary_flops(shape, 8 * 66)
    # Our head makes its logits again on the way back: recomputation, which model FLOPs leave out.
    assert 3 * (body_flops(shape, widths) + head) == pytest.approx(counted.get_total_flops() - head, rel=0.02)


@pytest.mark.parametrize(("first_layer", "checkpointing"), [(0, False), (1, False), (3, False), (3, True)])
def test_the_backward_pass_ends_at_the_first_adapted_layer(first_layer: int, checkpointing: bool) -> None:
    """But where layers are checkpointed: there it goes through all of them, and the forward pass is made twice."""
    shape = SHAPE.model_copy(update={"hidden": 96, "layers": 4, "intermediate": 192})
    adapter = Lora(rank=1, first_layer=first_layer)
    settings = setup.recipe(lora=adapter, attention="eager", gradient_checkpointing=checkpointing)
    model = random_reward_model(shape, settings)
    with FlopCounterMode(display=False) as counted:
        model(torch.arange(120).view(2, 60)).logits.sum().backward()
    passes = counted.get_total_flops() / body_flops(shape, np.full(2, 60.0))
    assert passes_of(settings, shape.layers) + checkpointing == pytest.approx(passes, rel=0.05)


@pytest.mark.parametrize("max_length", [1000, 60])
@pytest.mark.parametrize("share", [True, False])
def test_training_rows_are_the_trainers_own(share: bool, max_length: int) -> None:
    known = lengths(200)
    pairs = [
        cut_pair([1] * int(p), [1] * int(c), [1] * int(r), [2, 3], max_length)
        for p, c, r in zip(known.prompt, known.chosen, known.rejected, strict=True)
    ]
    _, _, tokens = row_shapes(setup.as_dataset(pairs), share)
    # Two texts cut by the same amount still share their prompt, which is not foreseen.
    assert training_rows(known, 2, max_length, share).sum() == pytest.approx(
        tokens, rel=0 if max_length > 200 else 0.01
    )


@pytest.mark.parametrize("name", ["full", "head33", "tail50", "window25", "head16tok", "min_length", "shuffled1"])
def test_cut_lengths_are_those_of_the_shards(name: str) -> None:
    known, truncation = lengths(100), parse(name)
    found = cut(known, truncation)
    for c, r, kept in zip(known.chosen, known.rejected, found.chosen, strict=True):
        first, last = nominal_range(truncation, int(c), other_tokens=int(r), key="x")
        assert kept == last - first


def test_fewer_pairs_hold_the_tokens_of_the_heads() -> None:
    known = lengths(500)
    pairs, heads = cut(known, parse("pairs25")), cut(known, parse("head25"))
    tokens = pairs.pairs / 500 * (known.chosen + known.rejected).sum()
    assert tokens == pytest.approx((heads.chosen + heads.rejected).sum())


def test_scoring_rows_are_the_scorers_own(tmp_path: Path) -> None:
    """Of one-pass log-probabilities, and the tokens that the reward scorer reports to have read."""
    known, cuts = lengths(50), [10, 25, 50, 100]
    triples = [
        ([5] * int(p), [6] * int(c), [7] * int(r))
        for p, c, r in zip(known.prompt, known.chosen, known.rejected, strict=True)
    ]
    rows = [row_length(pair_row(PairTokens(*triple), [3, 4], cuts, 1000)) for triple in triples]
    assert scoring_rows(known, 1, cuts, 1000).sum() == sum(rows)
    model = load_reward_model(checkpoints.chatml(tmp_path), finished=False)
    read: list[int] = []
    named = [
        {"pair_id": str(n), "cluster": "", "subset": None}
        | dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), triple, strict=True))
        for n, triple in enumerate(triples)
    ]
    score_pairs(
        model,
        named,
        closing=[3, 4],
        cuts=cuts,
        max_length=1000,
        token_budget=4096,
        pad_id=0,
        progress=lambda done, total: read.append(total),
    )
    assert scoring_rows(known, 2, cuts, 1000).sum() == pytest.approx(read[-1], rel=0.02)


def recipe(name: str, **changes: Any) -> Recipe:
    return STUDY.dpo_recipes[name].model_copy(update=changes)


def test_a_whole_llama_does_not_fit_on_one_card_and_the_way_out_is_named() -> None:
    refused = fit_training(LLAMA, recipe("trl_llama", weights="float32"), 8192, 80e9)
    assert isinstance(refused, str)
    assert "shard the weights (backend: openrlhf, ZeRO-3 on" in refused
    assert "lora: {rank: 16}" in refused
    assert "reference is free" in refused
    adapter = recipe("trl_llama", lora=Lora(), weights="bfloat16")
    assert isinstance(fit_training(LLAMA, adapter, 8192, 80e9), Fit)
    sharded = fit_training(LLAMA, recipe("openrlhf_llama"), 8192, 80e9)
    assert isinstance(sharded, Fit)
    assert sharded.gpus > 1
    # 16 bytes a parameter of float32 training alone are 128 GB.
    assert training_bytes(LLAMA, recipe("trl_llama", weights="float32"), 1) > 16 * 8.03e9
    gemma = fit_training(GEMMA, STUDY.reward_recipes["rlhflow_gemma_2b"], 6144, 80e9)
    assert isinstance(gemma, Fit)
    assert gemma.gpus == 1


def test_too_little_memory_is_one_line() -> None:
    assert too_little_here(3e9, 2, 7.1e9) is None
    assert "2 jobs side by side need at least 7.0 GB, this machine has 6.9 GB free" in str(
        too_little_here(3e9, 2, 6.9e9)
    )
    assert "a job needs at least 3.5 GB" in str(too_little_here(3e9, 1, 3.4e9))


def test_a_container_has_the_memory_of_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    whole = free_memory()
    assert 1e8 < whole < 1e15
    (tmp_path / "memory.max").write_text("30000000\n")
    (tmp_path / "memory.stat").write_text("anon 10000000\nfile 25000000\n")
    assert free_memory() == 2e7
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory() == pytest.approx(whole, rel=0.2)


def test_more_gpus_and_shorter_rows_take_less_memory() -> None:
    sharded = recipe("openrlhf_llama")
    needs = [training_bytes(LLAMA, sharded, 8192, gpus) for gpus in (1, 2, 4, 8)]
    assert needs == sorted(needs, reverse=True)
    assert training_bytes(LLAMA, sharded, 1024, 8) < needs[-1]


def test_jobs_of_a_dry_run_are_read() -> None:
    text = """Building DAG of jobs...
[Wed Nov 25 03:33:06 2026]
rule train_dpo:
    input: a, b
    output: results/x/models/dpo/e/full/seed1, results/x/models/dpo/e/head50/seed1
    log: logs/l.log
localrule write_config:
    output: results/x/config.yaml
rule all:
    input: results/x/config.yaml
"""
    found = parse_jobs(text, Path("results/x"))
    assert found == [
        ("train_dpo", ["models/dpo/e/full/seed1", "models/dpo/e/head50/seed1"]),
        ("write_config", ["config.yaml"]),
    ]


@dataclass
class FixedPlanner:
    """Gives the work of a path, and none to paths it does not know."""

    works: dict[str, Work]

    def of(self, path: str) -> Work:
        return self.works.get(path, Work())


def test_hours_here_are_those_of_products_and_of_the_start_of_each_models_job() -> None:
    planner = FixedPlanner({"a": Work(flops=36e12, trains=True), "b": Work(flops=36e12)})
    machine = Machine(training=Speed(1, 1e10), scoring=Speed(1, 2e10), jobs=2, start=36.0)
    jobs = [("train", ["a"]), ("train", ["a"]), ("score", ["b", "b"]), ("draw", ["figure"])]
    totals, refused = add_up(planner, jobs, machine)  # type: ignore[arg-type]
    assert refused == []
    assert totals["train"].here == pytest.approx(2 * (1.0 + 18 / 3600))
    assert totals["score"].here == pytest.approx(2 * 0.5 + 18 / 3600)
    assert not totals["draw"].here


def test_it_is_measured_on_pairs_that_stand_for_all() -> None:
    draw = np.random.default_rng(0)
    parts = [draw.integers(1, 700, 2000).astype(float) for _ in range(3)]
    pairs = typical_pairs(Lengths(*parts, pairs=2000, closing=2), 32, 512)
    assert len(pairs) == 32 and max(max(pair) for pair in pairs) == 512
    ours, theirs = np.sum(pairs, axis=1), np.clip(np.stack(parts), 1, 512).sum(0)
    assert ours.mean() == pytest.approx(theirs.mean(), rel=0.03)
    assert ours.std() == pytest.approx(theirs.std(), rel=0.1)
    assert (
        typical_pairs(Lengths(*(part[:1] for part in parts), pairs=1, closing=2), 2, 700)
        == [tuple(int(part[0]) for part in parts)] * 2
    )


def test_this_machine_is_measured_on_pairs_of_different_length() -> None:
    """Padding takes time and counts as nothing; the longest pair stands in a micro-batch by itself."""
    settings = DPORecipe(learning_rate=1e-3, global_batch=4, micro_batch=2, max_length=512, compute="float32")
    pairs = [(20, 30, 30), (40, 200, 200), (20, 50, 10), (20, 30, 29)]
    batches = micro_batches(SHAPE, settings, pairs, torch.device("cpu"))
    assert [batch.tokens for batch in batches] == [440, 239]
    assert [tuple(batch.pairs.inputs["input_ids"].shape) for batch in batches] == [(1, 448), (3, 80)]
    assert batches[1].flops == pytest.approx(body_flops(SHAPE, np.array([80.0, 80.0, 79.0])))


def test_this_machine_is_measured() -> None:
    settings = DPORecipe(learning_rate=1e-3, global_batch=4, micro_batch=4, max_length=512, compute="float32")
    machine = calibrate(SHAPE, settings, [(128, 128, 128)] * 4, seconds=0.4, since=time.time() - 7)
    assert 0 < machine.training.tokens < machine.scoring.tokens
    assert 7 < machine.start < 60
    per_token = body_flops(SHAPE, np.full(4, 384.0)) / (4 * 384)
    assert machine.scoring.flops / machine.scoring.tokens == pytest.approx(per_token)
