"""Hold the planted world's win rates against what they must be; fail with every line that disagrees."""

from job import job

with job(snakemake):
    import pyarrow.csv

    from shallow_signals.evaluation.checks import as_table, require
    from shallow_signals.evaluation.win_rate_checks import win_rate_checks

    found = win_rate_checks(snakemake.params.comparisons)
    table = as_table(found)
    print(table.to_pandas().to_string())
    require(found)
    pyarrow.csv.write_csv(table, snakemake.output.csv)
