"""Gather the accuracy of every reward model at every cut."""

from job import job

with job(snakemake):
    from pathlib import Path

    import pandas as pd

    from shallow_signals.config.statistics import Statistics
    from shallow_signals.evaluation.curves import COLUMNS, reward_by_cut
    from shallow_signals.files import write_text

    settings = Statistics.model_validate(snakemake.params.statistics)
    frame = pd.DataFrame(reward_by_cut(snakemake.params.rows, settings), columns=COLUMNS)
    write_text(Path(snakemake.output.csv), frame.to_csv(index=False))
