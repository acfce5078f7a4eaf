"""Loading checkpoints: safetensors only, never code from a checkpoint, and without a flood of messages.

transformers is imported inside the functions: naming this module should cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from shallow_signals.files import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Attention = Literal["sdpa", "eager", "flash_attention_2"]
HEAD = "score.weight"  # the head of a sequence-classification model, as transformers names it


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of the checkpoint in `folder`, as it was saved (no token is added, no side is changed)."""
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").is_file():
        raise InputError(f"{folder}: tokenizer.json is missing; name a folder that holds a whole checkpoint")
    with quiet():
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def load_causal_lm(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    attention: Attention = "sdpa",
    device: torch.device | str = "cpu",
) -> PreTrainedModel:
    """The causal LM in `folder`, its weights in `dtype`, in evaluation mode. Missing weights are an `InputError`."""
    from transformers import AutoModelForCausalLM

    model, missing = _load(AutoModelForCausalLM, folder, dtype, attention)
    if missing:
        raise InputError(f"{folder}: the weight {missing[0]} is missing ({len(missing)} in all); copy the model again")
    return model.to(device)


def load_reward_model(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    attention: Attention = "sdpa",
    device: torch.device | str = "cpu",
    *,
    finished: bool = True,
    seed: int = 0,
) -> PreTrainedModel:
    """The model in `folder` with a head of one output, in evaluation mode.

    `finished`: the checkpoint is a reward model; one without a head is an `InputError` (it would get a random one and
    score noise). Otherwise it may be a causal LM, whose new head is drawn from N(0, initializer_range) by `seed`: the
    same head on every device and, but for rounding, in every dtype.
    """
    from transformers import AutoModelForSequenceClassification

    model, missing = _load(AutoModelForSequenceClassification, folder, dtype, attention, num_labels=1)
    if lost := [key for key in missing if key != HEAD]:
        raise InputError(f"{folder}: the weight {lost[0]} is missing ({len(lost)} in all); copy the model again")
    if missing and finished:
        raise InputError(f"{folder}: {HEAD} is missing: this is no trained reward model; train one or name another")
    if missing:
        _draw_head(model, seed)
    return model.to(device)


def pick_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_compute_dtype(
    setting: Literal["auto", "float32", "bfloat16"], device: torch.device | str | None = None
) -> torch.dtype:
    """The dtype of matrix products; "auto" is bfloat16 where `device` (default: `pick_device()`) is fast at it."""
    if setting == "auto":
        return torch.bfloat16 if fast_bfloat16(device or pick_device()) else torch.float32
    return torch.bfloat16 if setting == "bfloat16" else torch.float32


def fast_bfloat16(device: torch.device | str) -> bool:
    """Whether `device` multiplies bfloat16 in hardware; a CPU without the instructions is faster at float32."""
    kind = torch.device(device).type
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return kind == "cpu" and not _cpu_flags().isdisjoint({"avx512_bf16", "amx_bf16"})


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' warnings and progress bars inside the block; errors still come through."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _load(
    kind: Any, folder: Path, dtype: torch.dtype, attention: Attention, **options: Any
) -> tuple[PreTrainedModel, list[str]]:
    """The model, and the sorted names of weights that the checkpoint lacks (they hold random numbers)."""
    from safetensors import SafetensorError

    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: config.json is missing; name a folder that holds a whole checkpoint")
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"{folder}: holds no *.safetensors; pickled weights are not read, save them as safetensors")
    try:
        with quiet():
            model, info = kind.from_pretrained(
                folder,
                dtype=dtype,
                attn_implementation=attention,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
    except (ImportError, OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise InputError(f"{folder}: can't be loaded ({' '.join(str(error).split())[:300]})") from error
    return model.eval(), sorted(info["missing_keys"])


def _draw_head(model: PreTrainedModel, seed: int) -> None:
    weight: torch.Tensor = model.score.weight
    spread = model.config.get_text_config().initializer_range
    drawn = torch.empty(weight.shape).normal_(0.0, spread, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        weight.copy_(drawn)


@cache
def _cpu_flags() -> frozenset[str]:
    """What the processor says it can do; empty where the system doesn't tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":", 1)[1] for line in lines if line.startswith("flags")), "").split())
