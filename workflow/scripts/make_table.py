"""Write one table as CSV, Markdown and LaTeX."""

from job import job

with job(snakemake):
    from pathlib import Path

    from shallow_signals.config.statistics import Statistics
    from shallow_signals.paper.build import build_table
    from shallow_signals.paper.render import write_table

    settings = Statistics.model_validate(snakemake.params.statistics)
    table = build_table(snakemake.wildcards.table, snakemake.params.rows, settings)
    write_table(table, Path(snakemake.output.csv).with_suffix(""))
