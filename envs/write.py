"""Write each environment for `--sdm conda` from its lists: `python envs/write.py` (or `make envs`).

The pins stand in the YAML itself: the workflow engine copies it elsewhere, where `-r list.txt` would find nothing, and
makes an environment anew only when the YAML has changed.
"""

from __future__ import annotations

from pathlib import Path

ENVS = Path(__file__).resolve().parent
LISTS = {
    "core": ("The main environment: requirements.lock, and what a GPU adds.", ["../requirements.lock", "gpu.txt"]),
    "openrlhf": (
        "OpenRLHF on CUDA GPUs, for recipes with `backend: openrlhf`. It pins transformers 5.15.0, so it can't share\n"
        "# the main environment. openrlhf.post-deploy.sh runs once the environment stands.",
        ["openrlhf.txt"],
    ),
    "vllm": ("Generation with `engine: vllm` on CUDA GPUs. vllm pins torch and its kernels itself.", ["vllm.txt"]),
    "rewardbench": (
        "RewardBench's own command line, for a second opinion on a reward model; no rule needs it.",
        ["rewardbench.txt"],
    ),
}


def environment(name: str) -> str:
    """The YAML of an environment."""
    about, lists = LISTS[name]
    lines = [line.split("#")[0].strip() for file in lists for line in (ENVS / file).read_text("utf-8").splitlines()]
    pins = "".join(f"      - {line}\n" for line in lines if line)
    return (
        f"# {about}\n# Written by envs/write.py from {' and '.join(Path(file).name for file in lists)}.\n"
        f"channels: [conda-forge]\ndependencies:\n  - python=3.11\n  - pip\n  - pip:\n{pins}"
    )


if __name__ == "__main__":
    for name in LISTS:
        (ENVS / f"{name}.yaml").write_text(environment(name), encoding="utf-8")
