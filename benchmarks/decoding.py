"""Speed of decoding with two models: against a plain loop, against two `generate` runs, over sweeps and lengths.

    OMP_NUM_THREADS=1 python benchmarks/decoding.py                       # tiny Llama, float32
    OMP_NUM_THREADS=1 python benchmarks/decoding.py --model FOLDER [--adapter FOLDER] --dtype bfloat16

Every ratio comes from one run on one machine. Prompts of 32-64 random tokens; nothing ends a response, so that all sides
make equally many tokens. With `--model` the policy is an adapter on it: the one given, or an untrained random one.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from shallow_signals.decoding import Strategy, generate, kl_threshold, length_control, mixing
from shallow_signals.models.load import load_causal_lm, quiet

SWEEP = [
    *(mixing(a) for a in (0.5, 0.25, 0.75, 1.0, 1.5, 2.0)),
    *(length_control(t) for t in (8, 16, 32, 64, 128)),
    *(kl_threshold(b) for b in (0.01, 0.03, 0.1, 0.3, 1.0)),
]
FOUR = [SWEEP[0], SWEEP[4], SWEEP[8], SWEEP[13]]  # two mixtures, a length, a threshold


def main() -> None:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, help="folder of the reference; default: a tiny random Llama")
    parser.add_argument("--adapter", type=Path, help="folder of a peft adapter on --model: the policy")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=256, help="new tokens of every response")
    parser.add_argument(
        "--loop-prompts", type=int, default=4, help="prompts that the plain loop is timed on, each whole"
    )
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement but the loop; the fastest counts")
    parser.add_argument("--no-sweeps", action="store_true", help="leave out the tables of sweeps and lengths")
    options = parser.parse_args()

    policy, reference = models(options)
    base = policy if reference is None else reference
    random = torch.Generator().manual_seed(0)
    sizes = torch.randint(32, 65, (options.batch,), generator=random).tolist()
    size = int(base.config.vocab_size)
    prompts = [torch.randint(3, size, (n,), generator=random).tolist() for n in sizes]

    def ours(strategies: Sequence[Strategy], tokens: int, batch: int) -> None:
        generate(policy, reference, prompts, strategies, max_new_tokens=tokens, end_ids=[], seed=1, batch_size=batch)

    print(
        f"`{' '.join(['decoding.py', *sys.argv[1:]])}`: {describe(base)}, {options.dtype}, {torch.get_num_threads()} ",
        end="",
    )
    print(
        f"thread(s), torch {torch.__version__}; batch {options.batch}, prompts of 32-64 tokens, {options.tokens} new ones.\n"
    )
    ours(SWEEP[:1], 8, options.batch)
    two_generates(policy, reference, prompts, 8)
    seconds = {"two `generate` runs, no KL": [], "one batch, mix0.50, KL on": []}  # type: dict[str, list[float]]
    for _ in range(options.repeats):  # in turn, so that a slow moment of the machine meets both
        seconds["two `generate` runs, no KL"].append(timed(two_generates, policy, reference, prompts, options.tokens))
        seconds["one batch, mix0.50, KL on"].append(timed(ours, SWEEP[:1], options.tokens, options.batch))
    few = prompts[: options.loop_prompts]
    loop = timed(plain_loop, policy, reference, few, options.tokens)
    speeds = {f"plain loop, batch 1, no cache, KL on ({len(few)} prompts)": len(few) * options.tokens / loop}
    speeds |= {name: options.batch * options.tokens / min(times) for name, times in seconds.items()}
    mine = speeds["one batch, mix0.50, KL on"]
    print("| | tokens/s | ours is faster by | time of ours / its |\n|---|---:|---:|---:|")
    for name, speed in speeds.items():
        print(f"| {name} | {speed:,.1f} | {mine / speed:.2f}x | {speed / mine:.3f} |")
    if options.no_sweeps:
        return
    print(
        f"\n| points of a sweep | {options.batch} side by side, s | all side by side, s | by 1 point | all responses' tokens/s |"
    )
    print("|---:|---:|---:|---:|---:|")
    first = (0.0, 0.0)
    for points in (SWEEP[:1], FOUR, SWEEP):
        n = len(points)
        wide = min(timed(ours, points, options.tokens, n * options.batch) for _ in range(options.repeats))
        narrow = timed(ours, points, options.tokens, options.batch) if n > 1 else wide
        first = first if first[0] else (narrow, wide)
        ratios = f"{narrow / first[0]:.2f}x / {wide / first[1]:.2f}x"
        print(f"| {n} | {narrow:.2f} | {wide:.2f} | {ratios} | {n * options.batch * options.tokens / wide:,.0f} |")
    print("\n| new tokens | s | ms a token step |\n|---:|---:|---:|")
    for tokens in (options.tokens // 4, options.tokens // 2, options.tokens):
        spent = min(timed(ours, SWEEP[:1], tokens, options.batch) for _ in range(options.repeats))
        print(f"| {tokens} | {spent:.2f} | {1e3 * spent / tokens:.2f} |")


def models(options: argparse.Namespace) -> tuple[Any, Any]:
    """Policy and reference; None for the reference where the policy is an adapter."""
    dtype = getattr(torch, options.dtype)
    if options.model is None:
        config = LlamaConfig(
            vocab_size=512,
            hidden_size=96,
            intermediate_size=192,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            initializer_range=0.08,
        )
        torch.manual_seed(0)
        reference, policy = LlamaForCausalLM(config), LlamaForCausalLM(config)
        policy.load_state_dict(reference.state_dict())
        with torch.no_grad():
            for weight in policy.parameters():
                weight += 0.01 * torch.randn_like(weight)
        return policy.to(dtype).eval(), reference.to(dtype).eval()
    from peft import LoraConfig, PeftModel, get_peft_model

    base = load_causal_lm(options.model, dtype)
    if options.adapter:
        return PeftModel.from_pretrained(base, options.adapter).eval(), None
    torch.manual_seed(0)
    tuned = get_peft_model(base, LoraConfig(r=16, lora_alpha=2, target_modules="all-linear", init_lora_weights=False))
    return tuned.to(dtype).eval(), None


def describe(model: Any) -> str:
    """Shape of a model in a few words."""
    config = model.config
    millions = sum(weight.numel() for name, weight in model.named_parameters() if "lora_" not in name) / 1e6
    return (
        f"{config.num_hidden_layers} layers of {config.hidden_size}, vocabulary {config.vocab_size}, {millions:.1f} M"
    )


def timed(job: Callable[..., Any], *arguments: Any) -> float:
    """Seconds that one call takes."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    job(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.inference_mode()
def plain_loop(policy: Any, reference: Any, prompts: Sequence[Sequence[int]], tokens: int) -> None:
    """Mixing with a = 0.5 one prompt at a time: for each token both models read the whole text again."""
    for prompt in prompts:
        ids = torch.tensor([prompt], device=policy.device)
        for _ in range(tokens):
            own = policy(ids, use_cache=False).logits[:, -1].float().log_softmax(-1)
            if reference is None:
                with policy.disable_adapter():
                    other = policy(ids, use_cache=False).logits[:, -1].float().log_softmax(-1)
            else:
                other = reference(ids, use_cache=False).logits[:, -1].float().log_softmax(-1)
            mixed = (0.5 * (own - other) + other).log_softmax(-1)
            token = torch.multinomial(mixed.exp(), 1)
            float((own.exp() * (own - other)).sum())
            float((mixed.exp() * (mixed - other)).sum())
            float((mixed - other).gather(1, token))
            ids = torch.cat([ids, token], dim=1)


@torch.inference_mode()
def two_generates(policy: Any, reference: Any, prompts: Sequence[Sequence[int]], tokens: int) -> None:
    """transformers' `generate` of the same batch, once with each model."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=policy.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=policy.device)
    settings = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "pad_token_id": 0}
    limits = {"max_new_tokens": tokens, "min_new_tokens": tokens, "eos_token_id": None}
    with quiet():
        policy.generate(input_ids=ids, attention_mask=mask, **settings, **limits)
        if reference is None:
            with policy.disable_adapter():
                policy.generate(input_ids=ids, attention_mask=mask, **settings, **limits)
        else:
            reference.generate(input_ids=ids, attention_mask=mask, **settings, **limits)


if __name__ == "__main__":
    main()
