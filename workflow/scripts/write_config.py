"""Write the merged configuration as YAML."""

from job import job

with job(snakemake):
    from pathlib import Path

    import yaml

    from shallow_signals.files import write_text

    text = yaml.safe_dump(snakemake.params.study, sort_keys=False, allow_unicode=True)
    write_text(Path(snakemake.output[0]), text)
