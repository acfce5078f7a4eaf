"""OpenRLHF's side of a comparison, run in a process of its own with OpenRLHF in the search path and no GPU.

`python openrlhf_side.py MODULE REQUEST` parses REQUEST's `arguments` with the real parser of `openrlhf.cli.MODULE` and
writes what is asked for beside REQUEST: the parsed arguments; the batches that OpenRLHF's own loading and data class
make of the shards they name; the losses of its own trainer's forward and loss class on these; and a checkpoint as it
saves one.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openrlhf.utils
import torch
from openrlhf.models import Actor, DPOLoss, PairWiseLoss, get_llm_for_sequence_regression


class Parsed(Exception):
    """Carries the arguments out of the command-line module, before it asks for a GPU."""


def parse(module: str, arguments: list[str]) -> Any:
    """What the module's own parser makes of a command line; its errors end this process as they would end a job."""

    def stop(args: Any) -> None:
        raise Parsed(args)

    openrlhf.utils.get_strategy = stop
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(f"openrlhf.cli.{module}", run_name="__main__")
    except Parsed as parsed:
        return parsed.args[0]
    raise SystemExit(f"{module} did not get to its strategy")


def plain(value: Any) -> Any:
    """Nested namespaces as dictionaries."""
    return {key: plain(item) for key, item in vars(value).items()} if isinstance(value, SimpleNamespace) else value


def read_batch(args: Any, is_dpo: bool) -> tuple[Any, Any]:
    """The whole train split in one batch, through OpenRLHF's own loading, data class and collation."""
    from openrlhf.datasets import RewardDataset
    from openrlhf.datasets.utils import blending_datasets

    strategy = SimpleNamespace(args=args, print=print, is_rank_0=lambda: True, ring_attn_group=None)
    side = "right" if is_dpo else "left"
    tokenizer = openrlhf.utils.get_tokenizer(args.model.model_name_or_path, None, side, strategy)
    data = blending_datasets(
        args.data.dataset, None, strategy, args.train.seed, args.data.max_samples, dataset_split=args.data.dataset_split
    )
    dataset = RewardDataset(data, tokenizer, args.data.max_len, strategy, is_dpo=is_dpo, num_processors=1)
    strategy.tokenizer = tokenizer
    return strategy, dataset.collate_fn([dataset[index] for index in range(len(dataset))])


def texts(ids: Any, masks: Any) -> list[list[int]]:
    """The tokens of each row of a batch, without padding."""
    return [row[mask.bool()].tolist() for row, mask in zip(ids.squeeze(1), masks.squeeze(1), strict=True)]


def actor(folder: str) -> Actor:
    """OpenRLHF's wrapper around a float32 model on the CPU."""
    from transformers import AutoModelForCausalLM

    model = Actor(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    model.packing_samples = False
    return model.eval()


def dpo_losses(strategy: Any, batch: Any, args: Any, policy: str) -> list[float]:
    """The loss of each pair by itself."""
    from openrlhf.trainer.dpo_trainer import DPOTrainer

    trainer = DPOTrainer.__new__(DPOTrainer)
    trainer.strategy, trainer.tokenizer = strategy, strategy.tokenizer
    ids = [part.squeeze(1) for part in batch[:4]]
    with torch.no_grad():
        sums = [
            trainer.concatenated_forward(m, *ids, batch[4])[:2]
            for m in (actor(policy), actor(str(args.ref.model_name_or_path)))
        ]
    loss = DPOLoss(args.model.beta, args.model.label_smoothing, args.model.ipo_enable)
    rows = zip(*sums[0], *sums[1], strict=True)
    return [loss(*[value[None] for value in row])[0].item() for row in rows]


def reward_model(args: Any) -> Any:
    """OpenRLHF's reward model on the CPU, float32, its head drawn by it."""
    model = get_llm_for_sequence_regression(
        args.model.model_name_or_path,
        "reward",
        attn_implementation="sdpa",
        init_value_head=True,
        value_head_prefix=args.ds.value_head_prefix,
    )
    return model.float().eval()


def reward_losses(strategy: Any, batch: Any, model: Any) -> list[float]:
    """The loss of each pair by itself."""
    from openrlhf.trainer.rm_trainer import RewardModelTrainer

    trainer = RewardModelTrainer.__new__(RewardModelTrainer)
    trainer.strategy, trainer.tokenizer = strategy, strategy.tokenizer
    with torch.no_grad():
        scores = trainer.concatenated_forward(model, *[part.squeeze(1) for part in batch[:4]])[:2]
    return [PairWiseLoss()(chosen[None], rejected[None]).item() for chosen, rejected in zip(*scores, strict=True)]


def save(model: Any, strategy: Any, folder: Path) -> None:
    """Save as the end of training does (DeepSpeed's wrapper left out)."""
    from openrlhf.utils.deepspeed import deepspeed as module

    module.torch_dist_barrier_and_cuda_sync = lambda: None
    saver = module.DeepspeedStrategy.__new__(module.DeepspeedStrategy)
    strategy.args.ds.zero_stage = 2
    saver.args, saver.stage, saver.ds_tensor_parallel_size = strategy.args, 2, 1
    saver.save_model(model, strategy.tokenizer, str(folder))


def main(module: str, request: Path) -> None:
    asked = json.loads(request.read_text(encoding="utf-8"))
    args = parse(module, asked["arguments"])
    found: dict[str, Any] = {"args": plain(args)}
    if asked.get("read"):
        is_dpo = module == "train_dpo"
        strategy, batch = read_batch(args, is_dpo)
        found |= {"chosen": texts(*batch[:2]), "rejected": texts(*batch[2:4])}
        torch.manual_seed(0)
        if is_dpo:
            found["losses"] = dpo_losses(strategy, batch, args, asked["policy"])
            model = actor(asked["policy"])
            model.model.config.use_cache = False  # as its constructor does to a model that it loads itself
            model.model.to(torch.bfloat16)
        else:
            model = reward_model(args)
            found["losses"] = reward_losses(strategy, batch, model)
            model.config.value_head_prefix = args.ds.value_head_prefix
            model.config.mean, model.config.std = 0.25, 2.0
        save(model, strategy, request.with_name("trained"))
    request.with_name("found.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
