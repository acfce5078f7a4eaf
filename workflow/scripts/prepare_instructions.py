"""Read a set of instructions into one Parquet file."""

from job import job

with job(snakemake):
    from pathlib import Path

    from pydantic import TypeAdapter

    from shallow_signals.config.generation import Instructions
    from shallow_signals.data.instructions import prepare_instructions

    root = snakemake.params.data_root
    prepare_instructions(
        TypeAdapter(Instructions).validate_python(snakemake.params.instructions),
        Path(snakemake.input.pairs[0]) if snakemake.input.pairs else None,
        Path(snakemake.output.instructions),
        Path(root) if root else None,
        snakemake.params.pins,
    )
