"""Draw Figure 1 from the tables of its examples."""

from job import job

with job(snakemake):
    from pathlib import Path

    from shallow_signals.paper.example_figure import draw_examples
    from shallow_signals.paper.gather import gather

    gather(zip(snakemake.params.labels, snakemake.input.tables, strict=True), Path(snakemake.output.csv))
    draw_examples(Path(snakemake.output.csv), [Path(snakemake.output.png), Path(snakemake.output.pdf)])
