"""What each planned output takes: tokens, model FLOPs, memory and disk, read off its path in the results."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from shallow_signals.config.planning import ModelShape
from shallow_signals.config.recipes import Recipe
from shallow_signals.config.study import DPOExperiment, RewardExperiment
from shallow_signals.config.truncation import Truncation, parse
from shallow_signals.planning import sampling
from shallow_signals.planning.lengths import Counts, Lengths, cut, scoring_rows, training_rows
from shallow_signals.planning.memory import READ, Fit, fit_training, inference_bytes, weight_bytes
from shallow_signals.planning.shape import body_flops, parameters, passes_of, vocabulary_flops
from shallow_signals.planning.sizes import Sizes, Split
from shallow_signals.planning.work import Work

_SAMPLED: dict[str, Callable[..., Work]] = {
    r"alpacaeval/(?P<comparison>[^/]+)/[^/]+/model_outputs\.json": sampling.generate_outputs,
    r"alpacaeval/(?P<comparison>[^/]+)/[^/]+/annotations\.json": sampling.judge_outputs,
    r"decoding/(?P<decoding>[^/]+)/responses\.parquet": sampling.decode,
    r"decoding/(?P<decoding>[^/]+)/retrained/[^/]+\.parquet": sampling.decode_retrained,
    r"decoding/(?P<decoding>[^/]+)/texts\.parquet": sampling.read_texts,
    r"decoding/(?P<decoding>[^/]+)/rewards/(?P<run>[^/]+)\.parquet": sampling.score_decoded,
}
_MEMBER = r"(?P<experiment>[^/]+)/(?P<truncation>[^/]+)/seed\d+"


@dataclass
class Planner:
    """Work of the outputs of one study on cards of `card` bytes."""

    sizes: Sizes
    card: float = 80e9
    _patterns: dict[str, str] = field(
        default_factory=lambda: {
            rf"models/reward/{_MEMBER}": "_train_reward",
            rf"evaluations/reward/{_MEMBER}/(?P<test>[^/]+)\.parquet": "_score_rewards",
            r"trunks/(?P<experiment>[^/]+)/(?P<test>[^/]+)\.safetensors": "_read_trunk",
            rf"models/dpo/{_MEMBER}": "_train_dpo",
            r"logprobs/base/(?P<model>[^/]+)/(?P<dataset>[^/]+)\.parquet": "_score_base",
            rf"logprobs/dpo/{_MEMBER}/(?P<dataset>[^/]+)\.parquet": "_score_policy",
            r"models/base/(?P<model>[^/]+)": "_provide",
        }
    )

    def of(self, path: str) -> Work:
        """What the output at `path` (below the run's results) takes; nothing where no model is at work."""
        for pattern, function in _SAMPLED.items():
            if match := re.fullmatch(pattern, path):
                return function(self.sizes, **match.groupdict())
        for pattern, method in self._patterns.items():
            if match := re.fullmatch(pattern, path):
                found: Work = getattr(self, method)(**match.groupdict())
                return found
        return Work()

    def _train_reward(self, experiment: str, truncation: str) -> Work:
        spec = self.sizes.study.reward_models[experiment]
        return self._train(spec, self.sizes.study.reward_recipes[spec.recipe], parse(truncation), is_dpo=False)

    def _train_dpo(self, experiment: str, truncation: str) -> Work:
        spec = self.sizes.study.dpo[experiment]
        return self._train(spec, self.sizes.study.dpo_recipes[spec.recipe], parse(truncation), is_dpo=True)

    def _train(
        self, spec: RewardExperiment | DPOExperiment, recipe: Recipe, truncation: Truncation, *, is_dpo: bool
    ) -> Work:
        shape = self.sizes.shape(spec.model)
        lengths = cut(self.sizes.lengths(spec.dataset, spec.model, "train"), truncation)
        closing = lengths.closing if recipe.end_of_turn == "keep" else 0
        rows = training_rows(lengths, closing, recipe.max_length, recipe.share_prompt)
        places = rows.sum() if recipe.backend == "openrlhf" else float((_responses(lengths) + 2 * closing).sum())
        forward = body_flops(shape, rows) + (vocabulary_flops(shape, places) if is_dpo else 0.0)
        passes = passes_of(recipe, shape.layers)
        if is_dpo and (recipe.backend == "openrlhf" or _read_apart(truncation)):
            passes += 1.0 / recipe.epochs if recipe.backend == "trl" else 1.0  # the reference
        scale = lengths.weight * recipe.epochs
        widest = float(rows.max())
        if len(lengths.prompt) == 1:  # averages: the longest row is not known, the recipe's cap is
            widest = recipe.max_length * (1.5 if recipe.share_prompt else 1.0)
        fit = fit_training(shape, recipe, widest, self.card)
        saved = float(weight_bytes(recipe) if recipe.backend == "trl" else 2) * parameters(
            shape, reward_model=not is_dpo
        )
        work = {"tokens": rows.sum() * scale, "flops": passes * forward * scale, "disk": saved}
        if isinstance(fit, Fit):
            return Work(**work, trains=True, gpus=fit.gpus, memory=fit.bytes_per_gpu)
        return Work(**work, trains=True, problem=fit)

    def _score_rewards(self, experiment: str, truncation: str, test: str) -> Work:
        spec, shape, cutting = *self._rewards_of(experiment), parse(truncation)
        rows, closing, lengths, scale = self._tested(experiment, test)
        shared = self.sizes.study.shared_layers(experiment)
        kept = np.empty(0)
        if test == "heldout" and (_read_apart(cutting) or (shared and cutting.kind == "min_length")):
            max_length = self.sizes.study.reward_recipes[spec.recipe].max_length
            kept = training_rows(cut(lengths, cutting), closing, max_length, share_prompt=True)
        flops = body_flops(shape, rows) * (1 - shared / shape.layers) + body_flops(shape, kept)
        return Work(
            tokens=(rows.sum() + kept.sum()) * scale,
            flops=flops * scale,
            memory=inference_bytes(shape, READ, reward_model=True),
            disk=24.0 * lengths.pairs * (len(self.sizes.study.cuts) + 1),
        )

    def _read_trunk(self, experiment: str, test: str) -> Work:
        shape = self._rewards_of(experiment)[1]
        rows, _, _, scale = self._tested(experiment, test)
        return Work(
            tokens=rows.sum() * scale,
            flops=body_flops(shape, rows) * scale * self.sizes.study.shared_layers(experiment) / shape.layers,
            memory=inference_bytes(shape, READ),
        )

    def _rewards_of(self, experiment: str) -> tuple[RewardExperiment, ModelShape]:
        spec = self.sizes.study.reward_models[experiment]
        return spec, self.sizes.shape(spec.model)

    def _tested(self, experiment: str, test: str) -> tuple[Counts, int, Lengths, float]:
        """Rows that score a test set at every cut, tokens of a closing, the pairs, and how many of each are read."""
        study, (spec, _) = self.sizes.study, self._rewards_of(experiment)
        recipe = study.reward_recipes[spec.recipe]
        dataset = spec.dataset if test == "heldout" else study.benchmarks[test].dataset
        lengths = self.sizes.lengths(dataset, spec.model, "test" if test == "heldout" else None)
        closing = lengths.closing if recipe.end_of_turn == "keep" else 0
        wanted = study.benchmarks[test].rows if test != "heldout" else None
        scale = lengths.weight * (min(1.0, wanted / lengths.pairs) if wanted else 1.0)
        return scoring_rows(lengths, closing, list(study.cuts), recipe.max_length), closing, lengths, scale

    def _score_base(self, model: str, dataset: str) -> Work:
        study = self.sizes.study
        trained = any(d.dataset == dataset and d.model == model for d in study.dpo.values())
        part = {i.part for i in study.implicit_rewards.values() if i.dataset == dataset}
        return self._score_logprobs(model, dataset, None if trained or "all" in part else "test")

    def _score_policy(self, experiment: str, truncation: str, dataset: str) -> Work:
        study = self.sizes.study
        users = [i for i in study.implicit_rewards.values() if i.policy == experiment and i.dataset == dataset]
        part: Split | None = None if any(i.part == "all" for i in users) else "test"
        return self._score_logprobs(study.dpo[experiment].model, dataset, part)

    def _score_logprobs(self, model: str, dataset: str, part: Split | None) -> Work:
        study, shape = self.sizes.study, self.sizes.shape(model)
        lengths = self.sizes.lengths(dataset, model, part)
        users = [i for i in study.implicit_rewards.values() if i.dataset == dataset]
        trained = [d for d in study.dpo.values() if d.dataset == dataset]
        cuts = {ratio for i in users for ratio in i.ratios}
        cuts |= {int(100 * ratio) for d in trained for t in d.truncations if (ratio := parse(t).ratio)}
        longest = [i.max_length for i in users] + [study.dpo_recipes[d.recipe].max_length for d in trained]
        rows = scoring_rows(lengths, lengths.closing - 1, sorted(cuts), max(longest, default=8192))
        branches = rows.sum() - (lengths.prompt + _responses(lengths)).sum()
        places = float(_responses(lengths).sum() + 2 * len(rows) + max(0.0, float(branches)))
        return Work(
            tokens=rows.sum() * lengths.weight,
            flops=(body_flops(shape, rows) + vocabulary_flops(shape, places)) * lengths.weight,
            memory=inference_bytes(shape, READ) + 4.0 * 4096 * 32768,
            disk=16.0 * float((lengths.prompt + _responses(lengths)).sum()) * lengths.weight,
        )

    def _provide(self, model: str) -> Work:
        return Work(disk=2.0 * parameters(self.sizes.shape(model)))


def _responses(lengths: Lengths) -> Counts:
    return lengths.chosen + lengths.rejected


def _read_apart(truncation: Truncation) -> bool:
    """Whether what a truncation keeps can't be read with the whole responses: no beginning, or other tokens."""
    return truncation.kind == "cut" and (truncation.side != "head" or truncation.unit == "char")
