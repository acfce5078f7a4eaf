"""Draw the probe's figure from its table."""

from job import job

with job(snakemake):
    from pathlib import Path

    from shallow_signals.paper.probe_figure import draw_probe

    paths = [Path(path) for path in snakemake.output]
    draw_probe(Path(snakemake.input.csv), Path(snakemake.input.summary), snakemake.params.label, paths)
