"""Gather the signal by position."""

from job import job

with job(snakemake):
    from pathlib import Path

    import pandas as pd

    from shallow_signals.config.statistics import Statistics
    from shallow_signals.files import write_text
    from shallow_signals.signal.position_table import COLUMNS, position_rows
    from shallow_signals.signal.ratios import read_ratios

    params = snakemake.params
    policies = [Path(path) for path in snakemake.input.policies]
    found = read_ratios(policies, Path(snakemake.input.reference), Path(snakemake.input.tokens), params.part)
    rows = position_rows(found, params.positions, params.ratios, Statistics.model_validate(params.statistics))
    write_text(Path(snakemake.output.csv), pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False))
