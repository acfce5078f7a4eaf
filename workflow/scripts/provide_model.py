"""Bring one base model here as an ordinary checkpoint."""

from job import job

with job(snakemake):
    from pathlib import Path

    from pydantic import TypeAdapter

    from shallow_signals.config.sources import ModelSource
    from shallow_signals.models.sources import provide_model

    source = TypeAdapter(ModelSource).validate_python(snakemake.params.source)
    provide_model(source, Path(snakemake.output.folder), snakemake.params.pins)
