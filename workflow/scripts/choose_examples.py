"""Choose the example pairs of Figure 1."""

from job import job

with job(snakemake):
    from pathlib import Path

    import pandas as pd

    from shallow_signals.files import write_text
    from shallow_signals.signal.examples import COLUMNS, example_rows
    from shallow_signals.signal.ratios import read_ratios

    policy, reference, tokens = (Path(snakemake.input.get(name)) for name in ("policy", "reference", "tokens"))
    found = read_ratios([policy], reference, tokens, snakemake.params.part)
    rows = example_rows(found.runs[0], tokens, Path(snakemake.input.pairs))
    write_text(Path(snakemake.output.csv), pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False))
