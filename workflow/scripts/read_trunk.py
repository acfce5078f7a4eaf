"""Keep what the layers that reward models share make of the pairs of a test set."""

from job import job

with job(snakemake):
    from pathlib import Path

    import torch

    from shallow_signals.evaluation.score_runs import Scoring, benchmark_trunk, heldout_trunk

    torch.set_num_threads(snakemake.threads)
    base, tokens, output = (Path(p) for p in (snakemake.input.base, snakemake.input.tokens, snakemake.output.states))
    layers, scoring = snakemake.params.layers, Scoring(**snakemake.params.scoring)
    if snakemake.wildcards.test == "heldout":
        heldout_trunk(base, layers, Path(snakemake.input.shards[0]), tokens, scoring, output)
    else:
        benchmark_trunk(base, layers, tokens, snakemake.params.rows, scoring, output)
