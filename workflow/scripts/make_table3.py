"""Write Table 3 as CSV, Markdown and LaTeX."""

from job import job

with job(snakemake):
    from pathlib import Path

    from shallow_signals.config.statistics import Statistics
    from shallow_signals.paper.render import write_table
    from shallow_signals.paper.table3 import table3

    table = table3(snakemake.params.comparisons, Statistics.model_validate(snakemake.params.statistics))
    write_table(table, Path(snakemake.output.csv).with_suffix(""))
