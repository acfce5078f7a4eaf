"""What each planned output takes: tokens, model FLOPs, memory and disk, read off its path in the results."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from shallow_signals.config.generation import Decoding
from shallow_signals.config.planning import ModelShape
from shallow_signals.config.recipes import Recipe
from shallow_signals.config.study import DPOExperiment, RewardExperiment
from shallow_signals.config.truncation import Truncation, parse
from shallow_signals.planning.lengths import Counts, Lengths, cut, scoring_rows, training_rows
from shallow_signals.planning.memory import Fit, fit_training, inference_bytes, weight_bytes
from shallow_signals.planning.shape import body_flops, parameters, vocabulary_flops
from shallow_signals.planning.sizes import Sizes, Split

READ = 32768  # tokens of a scoring batch on a GPU
TRAINED = 3.0  # forward, and a backward of twice its products
ADAPTED = 2.0  # an adapter's backward leaves the products for the weights' gradients out
_MEMBER = r"(?P<experiment>[^/]+)/(?P<truncation>[^/]+)/seed\d+"


@dataclass(frozen=True)
class Work:
    """One output's share of a run; `problem` says why it can't be made on this kind of GPU."""

    tokens: float = 0.0  # that a model reads, padding left out
    flops: float = 0.0  # of the model; recomputation is left out
    trains: bool = False
    generated: float = 0.0  # tokens sampled one by one, at most (prompts are left out)
    weights: float = 0.0  # bytes that each sampled token reads
    gpus: int = 1
    memory: float = 0.0  # bytes on each of them
    disk: float = 0.0  # bytes that stay
    problem: str | None = None


@dataclass
class Planner:
    """Work of the outputs of one study on cards of `card` bytes."""

    sizes: Sizes
    card: float = 80e9
    _patterns: dict[str, str] = field(
        default_factory=lambda: {
            rf"models/reward/{_MEMBER}": "_train_reward",
            rf"evaluations/reward/{_MEMBER}/(?P<test>[^/]+)\.parquet": "_score_rewards",
            rf"models/dpo/{_MEMBER}": "_train_dpo",
            r"logprobs/base/(?P<model>[^/]+)/(?P<dataset>[^/]+)\.parquet": "_score_base",
            rf"logprobs/dpo/{_MEMBER}/(?P<dataset>[^/]+)\.parquet": "_score_policy",
            r"alpacaeval/(?P<comparison>[^/]+)/[^/]+/model_outputs\.json": "_generate",
            r"alpacaeval/(?P<comparison>[^/]+)/[^/]+/annotations\.json": "_judge",
            r"decoding/(?P<decoding>[^/]+)/responses\.parquet": "_decode",
            r"decoding/(?P<decoding>[^/]+)/retrained/[^/]+\.parquet": "_decode_retrained",
            r"decoding/(?P<decoding>[^/]+)/texts\.parquet": "_read_texts",
            r"decoding/(?P<decoding>[^/]+)/rewards/(?P<run>[^/]+)\.parquet": "_score_decoded",
            r"models/base/(?P<model>[^/]+)": "_provide",
        }
    )

    def of(self, path: str) -> Work:
        """What the output at `path` (below the run's results) takes; nothing where no model is at work."""
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
        passes = ADAPTED if recipe.lora else TRAINED
        if is_dpo and (recipe.backend == "openrlhf" or _scored_again(truncation)):
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
        study = self.sizes.study
        spec = study.reward_models[experiment]
        recipe, shape = study.reward_recipes[spec.recipe], self.sizes.shape(spec.model)
        dataset = spec.dataset if test == "heldout" else study.benchmarks[test].dataset
        lengths = self.sizes.lengths(dataset, spec.model, "test" if test == "heldout" else None)
        closing = lengths.closing if recipe.end_of_turn == "keep" else 0
        rows = scoring_rows(lengths, closing, list(study.cuts), recipe.max_length)
        kept = np.empty(0)
        if test == "heldout" and not (cutting := parse(truncation)).keeps_text:
            kept = training_rows(cut(lengths, cutting), closing, recipe.max_length, share_prompt=True)
        read = np.concatenate([rows, kept])
        wanted = study.benchmarks[test].rows if test != "heldout" else None
        scale = lengths.weight * (min(1.0, wanted / lengths.pairs) if wanted else 1.0)
        return Work(
            tokens=read.sum() * scale,
            flops=body_flops(shape, read) * scale,
            memory=inference_bytes(shape, READ, reward_model=True),
            disk=24.0 * lengths.pairs * (len(study.cuts) + 1),
        )

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

    def _generate(self, comparison: str) -> Work:
        study = self.sizes.study
        spec = study.alpacaeval[comparison]
        shape = self.sizes.shape(study.dpo[spec.policies].model)
        return _sampled([shape], self._instructions(spec.instructions), spec.max_new_tokens, spec.batch)

    def _judge(self, comparison: str) -> Work:
        spec = self.sizes.study.alpacaeval[comparison]
        rows = self._instructions(spec.instructions)
        return self._rewarded(spec.judge, 2 * rows, spec.max_new_tokens)  # both sides' answers

    def _decode(self, decoding: str) -> Work:
        spec = self.sizes.study.decoding[decoding]
        rows = self._instructions(spec.instructions) * spec.samples * _strategies(spec)
        return _sampled(self._decoders(spec), rows, spec.max_new_tokens, spec.batch)

    def _decode_retrained(self, decoding: str) -> Work:
        spec = self.sizes.study.decoding[decoding]
        rows = self._instructions(spec.instructions) * spec.samples
        return _sampled(self._decoders(spec), rows, spec.max_new_tokens, spec.batch)

    def _read_texts(self, decoding: str) -> Work:
        """Both responses of some pairs under both models, and the policy's way on from the beginning of one."""
        spec = self.sizes.study.decoding[decoding]
        base = spec.reference or self.sizes.study.dpo[spec.policy].model
        lengths = self.sizes.lengths(spec.texts or "", base, "test")
        share = min(1.0, spec.text_rows / lengths.pairs)
        responses = np.minimum(lengths.chosen, spec.max_new_tokens) + np.minimum(lengths.rejected, spec.max_new_tokens)
        rows, scale = lengths.prompt + responses, lengths.weight * share
        new = _sampled(self._decoders(spec), lengths.pairs * share, spec.max_new_tokens - spec.prefix, spec.batch)
        reading = sum(
            body_flops(shape, rows) + vocabulary_flops(shape, float(responses.sum())) for shape in self._decoders(spec)
        )
        return replace(new, tokens=new.tokens + rows.sum() * scale, flops=new.flops + reading * scale)

    def _score_decoded(self, decoding: str, run: str) -> Work:
        spec = self.sizes.study.decoding[decoding]
        rows = self._instructions(spec.instructions) * spec.samples * (_strategies(spec) if run == "responses" else 1)
        return self._rewarded(spec.reward, rows, spec.max_new_tokens)

    def _instructions(self, name: str) -> float:
        return float(self.sizes.study.instructions[name].rows or 805)  # all of them: AlpacaEval's own

    def _decoders(self, spec: Decoding) -> list[ModelShape]:
        """The policy's and the reference's shape."""
        trained = self.sizes.study.dpo.get(spec.policy)
        policy = trained.model if trained else spec.policy
        return [self.sizes.shape(policy), self.sizes.shape(spec.reference or policy)]

    def _rewarded(self, judge: str, rows: float, longest: int) -> Work:
        """Responses of at most `longest` tokens read by a judge; nothing where no model of ours is one."""
        study = self.sizes.study
        spec = study.judges[judge]
        if spec.kind not in ("trained", "model"):
            return Work()
        shape = self.sizes.shape(spec.model if spec.kind == "model" else study.reward_models[spec.experiment].model)
        widths = np.full(1, float(longest))
        return Work(
            tokens=rows * longest,
            flops=rows * body_flops(shape, widths),
            memory=inference_bytes(shape, READ, reward_model=True),
        )

    def _provide(self, model: str) -> Work:
        return Work(disk=2.0 * parameters(self.sizes.shape(model)))


def _strategies(spec: Decoding) -> int:
    """Both models alone, and every strategy at every one of its parameters."""
    return 2 + len(spec.mixing) + len(spec.length_control) + len(spec.kl_threshold)


def _sampled(shapes: Sequence[ModelShape], rows: float, longest: int, batch: int) -> Work:
    """Responses sampled from models that all read every token. At most: none is foreseen to end before its cap."""
    tokens = rows * longest
    steps = sum(body_flops(shape, np.ones(1)) + vocabulary_flops(shape, 1) for shape in shapes)
    weights = sum(2.0 * parameters(shape) for shape in shapes)
    cache = sum(4.0 * shape.layers * shape.kv_heads * shape.head_dim for shape in shapes) * batch * longest
    return Work(
        tokens=tokens * len(shapes),
        flops=steps * tokens,
        generated=tokens,
        weights=weights / batch,
        memory=weights + cache,
        disk=6.0 * tokens,
    )


def _responses(lengths: Lengths) -> Counts:
    return lengths.chosen + lengths.rejected


def _scored_again(truncation: Truncation) -> bool:
    """Whether the reference of a training set can't be read off the pass over whole responses."""
    return truncation.kind == "cut" and (truncation.side != "head" or truncation.unit == "char")
