"""Train reward models, one after the other in this process."""

from job import job

with job(snakemake):
    from pathlib import Path

    import torch

    from shallow_signals.config.recipes import RewardRecipe
    from shallow_signals.training.reward import train_reward_model

    torch.set_num_threads(snakemake.threads)
    recipe = RewardRecipe.model_validate(snakemake.params.recipe)
    members = zip(snakemake.params.members, snakemake.input.shards, snakemake.output.folders, strict=True)
    for (_, seed), shards, folder in members:
        train_reward_model(Path(shards), Path(snakemake.input.base), recipe, seed, Path(folder))
