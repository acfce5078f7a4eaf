"""Bring one file of AlpacaEval's length control here."""

from job import job

with job(snakemake):
    from pathlib import Path

    from shallow_signals.config.generation import LengthControl
    from shallow_signals.evaluation.regulariser import fetch_length_control

    root = snakemake.params.data_root
    fetch_length_control(
        LengthControl.model_validate(snakemake.params.length_control),
        snakemake.wildcards.part,
        Path(snakemake.input.instructions),
        Path(snakemake.output.csv),
        Path(root) if root else None,
        snakemake.params.pins,
    )
