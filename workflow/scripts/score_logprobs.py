"""Score pairs under one causal language model, one pass a pair."""

from job import job

with job(snakemake):
    from pathlib import Path

    import torch

    from shallow_signals.files import write_json
    from shallow_signals.provenance import content_hash, sidecar
    from shallow_signals.signal.logprob_files import score_logprobs
    from shallow_signals.states import state_folder

    torch.set_num_threads(snakemake.threads)
    out, params = Path(snakemake.output.logprobs), snakemake.params.scoring
    inputs = {"model": Path(snakemake.input.model), "tokens": Path(snakemake.input.tokens)}
    hashes = {name: content_hash(path) for name, path in inputs.items()}
    facts = score_logprobs(**inputs, out=out, state=state_folder(out, params, hashes), **params)
    write_json(out.with_suffix(".meta.json"), sidecar(params, hashes, **facts))
