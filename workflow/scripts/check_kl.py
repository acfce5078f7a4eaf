"""Hold KL by position against where the signal was planted."""

from job import job

with job(snakemake):
    from pathlib import Path

    import pandas as pd

    from shallow_signals.evaluation.kl_check import check_kl
    from shallow_signals.files import write_text

    found = check_kl(pd.read_csv(snakemake.input.csv), snakemake.params.profiles)
    write_text(Path(snakemake.output.csv), found.to_csv(index=False))
