"""Write truncations of one data set as shards."""

from job import job

with job(snakemake):
    from pathlib import Path

    from tokenizers import Tokenizer

    from shallow_signals.config.truncation import parse
    from shallow_signals.data.shards import write_shards

    tokenizer = Tokenizer.from_file(str(Path(snakemake.input.model) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    for truncation, shards in zip(snakemake.params.truncations, snakemake.output, strict=True):
        write_shards(
            Path(snakemake.input.tokens),
            Path(snakemake.input.pairs),
            parse(truncation),
            Path(shards),
            lambda texts: [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)],
        )
