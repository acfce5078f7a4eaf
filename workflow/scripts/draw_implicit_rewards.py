"""Draw the accuracy of implicit rewards by cut from their tables."""

from job import job

with job(snakemake):
    from pathlib import Path

    from shallow_signals.paper.gather import gather
    from shallow_signals.paper.implicit_figure import draw_implicit_rewards

    gather(zip(snakemake.params.labels, snakemake.input.tables, strict=True), Path(snakemake.output.csv))
    draw_implicit_rewards(Path(snakemake.output.csv), [Path(snakemake.output.png), Path(snakemake.output.pdf)])
