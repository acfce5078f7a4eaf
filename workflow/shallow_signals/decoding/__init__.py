"""Decoding with two models at once: a policy and its reference.

    from shallow_signals.decoding import generate, kl_threshold, length_control, mixing, policy, reference

    made = generate(model, base, prompts, [reference(), mixing(0.5), length_control(8), kl_threshold(0.1), policy()],
                    max_new_tokens=256, end_ids=[end_of_turn], seed=1)
    made[0].tokens, made[0].kl_policy_reference

What is named here is imported when it is first used: torch and transformers take seconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shallow_signals.decoding.kl import continuations, exact_kl, monte_carlo_kl, sequence_kl
    from shallow_signals.decoding.mixture import sampling_logps
    from shallow_signals.decoding.records import Generation
    from shallow_signals.decoding.sampler import generate
    from shallow_signals.decoding.strategies import (
        Strategy,
        kl_threshold,
        length_control,
        mixing,
        parse,
        policy,
        reference,
    )
    from shallow_signals.decoding.texts import TextKL, text_kl

__all__ = [
    "Generation",
    "Strategy",
    "TextKL",
    "continuations",
    "exact_kl",
    "generate",
    "kl_threshold",
    "length_control",
    "mixing",
    "monte_carlo_kl",
    "parse",
    "policy",
    "reference",
    "sampling_logps",
    "sequence_kl",
    "text_kl",
]

_HOMES = {
    "kl": ("continuations", "exact_kl", "monte_carlo_kl", "sequence_kl"),
    "mixture": ("sampling_logps",),
    "records": ("Generation",),
    "sampler": ("generate",),
    "strategies": (
        "Strategy",
        "kl_threshold",
        "length_control",
        "mixing",
        "parse",
        "policy",
        "reference",
    ),
    "texts": ("TextKL", "text_kl"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
