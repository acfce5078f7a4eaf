"""Compare the likeliest tokens of policy and reference on a sample of responses."""

from job import job

with job(snakemake):
    from pathlib import Path

    import pandas as pd
    import torch

    from shallow_signals.config.statistics import Statistics
    from shallow_signals.files import write_json, write_text
    from shallow_signals.models.load import pick_compute_dtype
    from shallow_signals.provenance import content_hash, sidecar
    from shallow_signals.signal.position_table import COLUMNS
    from shallow_signals.signal.ranks import rank_rows, read_ranks, sample_texts

    torch.set_num_threads(snakemake.threads)
    inputs, params, out = snakemake.input, snakemake.params, Path(snakemake.output.csv)
    sample = sample_texts(Path(inputs.logprobs), Path(inputs.tokens), params.part, params.pairs)
    dtype = pick_compute_dtype(params.compute)
    found = read_ranks(sample, [Path(path) for path in inputs.policies], Path(inputs.reference), dtype)
    rows = rank_rows(found, params.positions, Statistics.model_validate(params.statistics))
    write_text(out, pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False))
    models = {f"policy{number}": path for number, path in enumerate(inputs.policies)} | {"reference": inputs.reference}
    hashes = {name: content_hash(Path(path)) for name, path in models.items()}
    facts = {"pairs": len(sample.texts), "compute": str(dtype).removeprefix("torch.")}
    write_json(out.with_suffix(".meta.json"), sidecar({"pairs": params.pairs, "part": params.part}, hashes, **facts))
