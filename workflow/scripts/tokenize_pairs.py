"""Tokenise the pairs of one data set for one base model."""

from job import job

with job(snakemake):
    from pathlib import Path

    from shallow_signals.files import read_parquet, write_json, write_parquet
    from shallow_signals.models.load import load_tokenizer
    from shallow_signals.models.tokens import tokenize_pairs

    tokenizer = load_tokenizer(Path(snakemake.input.model))
    tokens, counts = tokenize_pairs(read_parquet(Path(snakemake.input.pairs)), tokenizer, snakemake.params.bos)
    write_parquet(Path(snakemake.output.tokens), tokens)
    write_json(Path(snakemake.output.manifest), counts)
