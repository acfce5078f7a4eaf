"""Run by torchrun: one optimiser step in two processes; the first writes its gradients and what both saw."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

import reward_setup as setup

base, folder = Path(sys.argv[1]), Path(sys.argv[2])
pairs = setup.random_pairs(16)
trainer = setup.trainer_on(base, pairs, setup.recipe(), folder / "state")
seen: list[str] = []
collate = trainer.data_collator


def remember(rows: Any) -> Any:
    batch = collate(rows)
    seen.extend(map(str, batch["pairs"]))
    return batch


trainer.data_collator = remember
trainer.add_callback(catch := setup.CatchGradients())
trainer.train()
both: list[Any] = [None, None]
torch.distributed.all_gather_object(both, seen)
if trainer.is_world_process_zero():
    (folder / "seen.json").write_text(json.dumps(both), encoding="utf-8")
    torch.save({name.removeprefix("module."): g for name, g in catch.steps[0].items()}, folder / "gradients.pt")
torch.distributed.destroy_process_group()
