"""Draw Figure 4."""

from job import job

with job(snakemake):
    from pathlib import Path

    from shallow_signals.paper.tradeoff_figure import draw_tradeoff

    draw_tradeoff(Path(snakemake.input.csv), [Path(path) for path in snakemake.output])
