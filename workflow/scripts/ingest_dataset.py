"""Turn one source into pairs, a quarantine and a manifest."""

from job import job

with job(snakemake):
    from pathlib import Path

    from shallow_signals.config.sources import Dataset
    from shallow_signals.data.ingest import ingest

    root = snakemake.params.data_root
    ingest(
        Dataset.model_validate(snakemake.params.dataset),
        snakemake.wildcards.dataset,
        Path(snakemake.output.pairs).parent,
        Path(root) if root else None,
        snakemake.params.pins,
    )
