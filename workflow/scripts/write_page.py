"""Write the results page and the facts that it ends with."""

from job import job

with job(snakemake):
    from pathlib import Path

    from shallow_signals.files import write_json
    from shallow_signals.paper.page import write_page
    from shallow_signals.paper.run_facts import run_facts

    folder = Path(snakemake.output.page).parent
    write_json(
        Path(snakemake.output.facts), run_facts(snakemake.params.run, snakemake.params.page, folder / "benchmarks")
    )
    write_page(folder)
