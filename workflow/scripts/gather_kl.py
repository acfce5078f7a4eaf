"""Gather KL by position from responses and texts."""

from job import job

with job(snakemake):
    from pathlib import Path

    import pandas as pd

    from shallow_signals.config.statistics import Statistics
    from shallow_signals.evaluation.kl_by_position import OWN, given_texts, kl_rows, own_samples
    from shallow_signals.files import write_text

    settings = Statistics.model_validate(snakemake.params.statistics)
    found = []
    for row in snakemake.params.rows:
        curves = {OWN: own_samples(Path(row["responses"]))}
        curves |= given_texts(Path(row["texts"])) if row["texts"] else {}
        found += [{"label": row["label"], **line} for line in kl_rows(curves, settings)]
    write_text(Path(snakemake.output.csv), pd.DataFrame(found).to_csv(index=False))
