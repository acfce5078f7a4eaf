"""Rewards of decoded responses."""

from job import job

with job(snakemake):
    from pathlib import Path

    import pyarrow as pa
    import torch

    from shallow_signals.evaluation.rewards import rewards
    from shallow_signals.files import read_parquet, write_parquet

    torch.set_num_threads(snakemake.threads)
    made = read_parquet(Path(snakemake.input.responses), ["prompt_id", "sample", "strategy", "text"])
    asked = read_parquet(Path(snakemake.input.instructions), ["instruction_id", "prompt"])
    prompts = dict(zip(asked["instruction_id"].to_pylist(), asked["prompt"].to_pylist(), strict=True))
    found = rewards(
        snakemake.params.judge,
        Path(snakemake.input.model[0]) if snakemake.input.model else None,
        [prompts[name] for name in made["prompt_id"].to_pylist()],
        made["text"].to_pylist(),
    )
    scored = made.select(["prompt_id", "sample", "strategy"]).append_column("reward", pa.array(found))
    write_parquet(Path(snakemake.output.rewards), scored)
