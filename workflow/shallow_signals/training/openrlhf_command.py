"""From a recipe to OpenRLHF's command line (0.11.2): `openrlhf.cli.train_dpo` and `openrlhf.cli.train_rm`."""

from __future__ import annotations

import sys

from shallow_signals.config.recipes import DPORecipe, Recipe, RewardRecipe
from shallow_signals.files import InputError
from shallow_signals.training.steps import accumulation_steps
from shallow_signals.training.torchrun import Job

VERSION = "0.11.2"
TRAINED, STATES, EVENTS = "trained", "states", "events"  # folders below a run's state


def command(job: Job, recipe: Recipe, processes: int) -> list[str]:
    """The whole command: OpenRLHF's trainer in `processes` processes of this machine, one a GPU."""
    module = "openrlhf.cli.train_dpo" if isinstance(recipe, DPORecipe) else "openrlhf.cli.train_rm"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*torchrun, "-m", module, *arguments(job, recipe, processes)]


def arguments(job: Job, recipe: Recipe, processes: int) -> list[str]:
    """What stands behind the module's name. Whatever the recipe says is said; the rest are OpenRLHF's own defaults.

    Raises `InputError` where the global batch can't be cut evenly, or where a path would be read as several.
    """
    accumulation_steps(recipe.global_batch, recipe.micro_batch, processes)
    if {",", "@"} & set(str(job.shards)):
        raise InputError(f"{job.shards}: OpenRLHF splits paths of data sets at ',' and '@'; rename the folder")
    lower, upper = recipe.adam_betas
    values: dict[str, object] = {
        "--model.model_name_or_path": job.base,
        "--data.dataset": job.shards,
        "--data.dataset_split": "train",
        "--data.max_samples": 10**9,  # all of them; the default stops at a million
        "--data.max_len": recipe.max_length,
        "--train.batch_size": recipe.global_batch,
        "--train.micro_batch_size": recipe.micro_batch,
        "--train.max_epochs": int(recipe.epochs),
        "--train.seed": job.seed,
        "--adam.lr": recipe.learning_rate,
        "--adam.weight_decay": recipe.weight_decay,
        "--lr_scheduler": recipe.schedule,
        "--lr_warmup_ratio": recipe.warmup_ratio,
        "--min_lr_ratio": recipe.min_lr_ratio,
        "--max_norm": recipe.max_grad_norm,
        "--ds.zero_stage": 3,
        "--ds.param_dtype": "bf16",
        "--ds.attn_implementation": recipe.attention,
        "--ckpt.output_dir": job.state / TRAINED,
        "--ckpt.path": job.state / STATES,
        "--ckpt.save_steps": recipe.checkpoint_every,
        "--ckpt.max_num": 2,
        "--logger.tensorboard_dir": job.state / EVENTS,
        "--logger.wandb.run_name": "run",  # names the folder of events, where nothing else would
    }
    switches = ["--data.apply_chat_template", "--ckpt.load_enable"]
    if recipe.gradient_checkpointing:
        switches.append("--model.gradient_checkpointing_enable")
    if isinstance(recipe, DPORecipe):
        values["--model.beta"] = recipe.beta
    if isinstance(recipe, RewardRecipe):
        switches.append("--model.compute_fp32_loss_enable")
    named = [part for name, value in values.items() for part in (name, str(value))]
    return [*named, "--adam.betas", str(lower), str(upper), *switches]
