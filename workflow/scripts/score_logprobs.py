"""Score pairs under causal language models, one pass a pair and model."""

from job import job

with job(snakemake):
    from pathlib import Path

    import torch

    from shallow_signals.files import write_json
    from shallow_signals.provenance import content_hash, sidecar
    from shallow_signals.signal.logprob_files import score_logprobs
    from shallow_signals.states import state_folder

    torch.set_num_threads(snakemake.threads)
    tokens, params = Path(snakemake.input.tokens), snakemake.params.scoring
    fixed = {"tokens": content_hash(tokens)}
    for folder, output in zip(snakemake.input.models, snakemake.output, strict=True):
        model, out = Path(folder), Path(output)
        hashes = {"model": content_hash(model), **fixed}
        facts = score_logprobs(model=model, tokens=tokens, out=out, state=state_folder(out, params, hashes), **params)
        write_json(out.with_suffix(".meta.json"), sidecar(params, hashes, **facts))
