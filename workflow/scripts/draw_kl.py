"""Draw Figure 3."""

from job import job

with job(snakemake):
    from pathlib import Path

    from shallow_signals.paper.kl_figure import draw_kl

    draw_kl(Path(snakemake.input.csv), [Path(path) for path in snakemake.output])
