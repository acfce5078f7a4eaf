"""Draw the signal by position from its tables."""

from job import job

with job(snakemake):
    from pathlib import Path

    from shallow_signals.paper.gather import gather
    from shallow_signals.paper.position_figure import draw_position

    labels, inputs = snakemake.params.labels, snakemake.input
    tables = [*zip(labels, inputs.positions, strict=True), *zip(labels, inputs.ranks, strict=True)]
    gather(tables, Path(snakemake.output.csv))
    draw_position(Path(snakemake.output.csv), [Path(snakemake.output.png), Path(snakemake.output.pdf)])
