"""Write one truncation of one data set as shards."""

from job import job

with job(snakemake):
    from pathlib import Path

    from tokenizers import Tokenizer

    from shallow_signals.config.truncation import parse
    from shallow_signals.data.shards import write_shards

    tokenizer = Tokenizer.from_file(str(Path(snakemake.input.model) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    write_shards(
        Path(snakemake.input.tokens),
        Path(snakemake.input.pairs),
        parse(snakemake.wildcards.truncation),
        Path(snakemake.output.shards),
        lambda texts: [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)],
    )
