"""Write the table of verdicts as CSV, Markdown and LaTeX."""

from job import job

with job(snakemake):
    from pathlib import Path

    from shallow_signals.config.statistics import Statistics
    from shallow_signals.paper.render import write_table
    from shallow_signals.paper.verdicts import verdicts

    settings = Statistics.model_validate(snakemake.params.statistics)
    write_table(verdicts(snakemake.params.evidence, settings), Path(snakemake.output.csv).with_suffix(""))
