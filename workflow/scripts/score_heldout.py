"""Score held-out pairs with reward models: whole, at every cut, and as each training set was cut."""

from job import job

with job(snakemake):
    from pathlib import Path

    import torch

    from shallow_signals.config.truncation import parse
    from shallow_signals.evaluation.score_runs import Scoring, score_heldout

    torch.set_num_threads(snakemake.threads)
    by_truncation = {Path(folder).name: Path(folder) for folder in snakemake.input.shards}
    trunk = next(map(Path, snakemake.input.trunk), None)
    members = zip(snakemake.params.members, snakemake.input.models, snakemake.output, strict=True)
    for (truncation, _), model, scores in members:
        kept = None if parse(truncation).keeps_text else by_truncation[truncation]
        score_heldout(
            Path(model),
            by_truncation["full"],
            kept,
            Path(snakemake.input.tokens),
            Scoring(**snakemake.params.scoring),
            Path(scores),
            trunk,
        )
