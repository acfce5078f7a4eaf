"""Score a benchmark's pairs with reward models, whole and at every cut."""

from job import job

with job(snakemake):
    from pathlib import Path

    import torch

    from shallow_signals.evaluation.score_runs import Scoring, score_benchmark

    torch.set_num_threads(snakemake.threads)
    trunk = next(map(Path, snakemake.input.trunk), None)
    for model, scores in zip(snakemake.input.models, snakemake.output, strict=True):
        score_benchmark(
            Path(model),
            Path(snakemake.input.tokens),
            snakemake.params.rows,
            Scoring(**snakemake.params.scoring),
            Path(scores),
            trunk,
        )
