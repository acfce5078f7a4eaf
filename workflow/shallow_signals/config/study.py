"""The whole configuration: named parts, and lists that select what a run does."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from shallow_signals.config.base import Closed, Name, Percent
from shallow_signals.config.generation import AlpacaEval, Decoding, Instructions, Judge
from shallow_signals.config.implicit import ImplicitReward
from shallow_signals.config.planning import Planning
from shallow_signals.config.probe import Probe
from shallow_signals.config.recipes import DPORecipe, RewardRecipe
from shallow_signals.config.sources import Dataset, Model
from shallow_signals.config.statistics import Statistics
from shallow_signals.config.truncation import parse


def _truncation_name(name: str) -> str:
    parse(name)
    return name


TruncationName = Annotated[str, AfterValidator(_truncation_name)]
Seeds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class Benchmark(Closed):
    """A benchmark of fixed pairs with subsets, scored by section."""

    label: str
    dataset: Name
    rules: Literal["rewardbench", "planted"]  # which table of sections, counts and weights
    rows: int | None = Field(default=None, ge=1)  # a fixed sample, stratified by subset


class Experiment(Closed):
    """Models of one data set and base model at several truncations and seeds."""

    label: str | None = None  # as tables print it; null: the data set's label
    dataset: Name
    model: Name
    recipe: Name
    truncations: list[TruncationName] = Field(min_length=1)
    seeds: Seeds = [42]
    extra_seeds: dict[TruncationName, Seeds] = {}  # seeds beyond `seeds`, for some truncations only

    def seeds_of(self, truncation: str) -> list[int]:
        """All seeds of one truncation, in order, without repeats."""
        return list(dict.fromkeys([*self.seeds, *self.extra_seeds.get(truncation, [])]))


class RewardExperiment(Experiment):
    """Bradley-Terry reward models."""

    benchmarks: list[Name] = []
    heldout: bool = True  # also scored on the data set's own held-out pairs


class DPOExperiment(Experiment):
    """DPO policies; the base model is each one's reference."""


class Evidence(Closed):
    """What is asked where the signal of one data set sits; null where the run has no such instrument."""

    label: str
    probe: Name | None = None
    reward_models: Name | None = None
    implicit_rewards: Name | None = None


class Page(Closed):
    """The head of the results page."""

    title: str
    summary: str


class Tables(Closed):
    """Which experiments each table shows (Table 3: AlpacaEval comparisons; verdicts: evidence); empty: left out."""

    table1: list[Name] = []
    table2: list[Name] = []
    table3: list[Name] = []
    table4: list[Name] = []
    controls: list[Name] = []
    verdicts: list[Name] = []


class Figures(Closed):
    """Which implicit rewards (1, 2, 5, position) and decodings (3, 4) each figure shows; an empty list: no figure."""

    figure1: list[Name] = []  # example pairs, their tokens shaded
    figure2: list[Name] = []
    figure3: list[Name] = []
    figure4: list[Name] = []
    figure5: list[Name] = []
    position: list[Name] = []  # the signal by position


class Study(Closed):
    """One run of the study."""

    run: Name  # results/<run>/
    size: str | None = None  # which of `sizes` is merged over the rest
    sizes: dict[Name, dict[str, Any]] = {}  # overlays of one study that differ in how much is done
    data_root: str | None = None  # a folder that holds the `offline` files of the data sets
    require_pinned: bool = False  # refuse to start while a hub revision is unknown
    process_per: Literal["model", "experiment"] = "model"  # small models may share one process
    statistics: Statistics = Statistics()
    planning: Planning = Planning()
    cuts: list[Percent] = [
        5,
        10,
        15,
        20,
        25,
        30,
        33,
        40,
        50,
        60,
        70,
        80,
        90,
        100,
    ]  # where score curves are read
    models: dict[Name, Model]
    datasets: dict[Name, Dataset]
    benchmarks: dict[Name, Benchmark] = {}
    reward_recipes: dict[Name, RewardRecipe] = {}
    reward_models: dict[Name, RewardExperiment] = {}
    dpo_recipes: dict[Name, DPORecipe] = {}
    dpo: dict[Name, DPOExperiment] = {}
    implicit_rewards: dict[Name, ImplicitReward] = {}
    instructions: dict[Name, Instructions] = {}
    judges: dict[Name, Judge] = {}
    alpacaeval: dict[Name, AlpacaEval] = {}
    decoding: dict[Name, Decoding] = {}
    probes: dict[Name, Probe] = {}
    evidence: dict[Name, Evidence] = {}
    tables: Tables = Tables()
    figures: Figures = Figures()
    probe: list[Name] = []  # the probes of this run
    page: Page | None = None  # results/<run>/README.md; null: none is written
    checks: list[Literal["planted", "shuffled", "dpo", "kl"]] = []  # instruments held against a known truth

    def shared_layers(self, experiment: str) -> int:
        """How many first layers all reward models of an experiment share with their base; 0 where there is but one."""
        spec = self.reward_models[experiment]
        lora = self.reward_recipes[spec.recipe].lora
        models = sum(len(spec.seeds_of(truncation)) for truncation in spec.truncations)
        return lora.first_layer if lora and models > 1 else 0

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        for key, benchmark in self.benchmarks.items():
            _known(f"benchmarks.{key}.dataset", benchmark.dataset, self.datasets)
        for key, reward_model in self.reward_models.items():
            self._experiment(f"reward_models.{key}", reward_model, self.reward_recipes)
            for name in reward_model.benchmarks:
                _known(f"reward_models.{key}.benchmarks", name, self.benchmarks)
        for key, dpo in self.dpo.items():
            self._experiment(f"dpo.{key}", dpo, self.dpo_recipes)
        for key, implicit in self.implicit_rewards.items():
            self._implicit(f"implicit_rewards.{key}", implicit)
        for key, instructions in self.instructions.items():
            if instructions.source.kind == "pairs":
                _known(f"instructions.{key}.source.dataset", instructions.source.dataset, self.datasets)
        for key, judge in self.judges.items():
            self._judge(f"judges.{key}", judge)
        for key, comparison in self.alpacaeval.items():
            self._comparison(f"alpacaeval.{key}", comparison)
            if comparison.engine == "vllm" and self.process_per == "experiment" and key in self.tables.table3:
                raise ValueError(f"alpacaeval.{key}.engine: vllm keeps its GPU until it ends; set process_per: model")
        for key, decoding in self.decoding.items():
            self._decoding(f"decoding.{key}", decoding)
        for key, probe in self.probes.items():
            _known(f"probes.{key}.dataset", probe.dataset, self.datasets)
        for key, evidence in self.evidence.items():
            for part in ("probe", "reward_models", "implicit_rewards"):
                if (named := getattr(evidence, part)) is not None:
                    known = self.probes if part == "probe" else getattr(self, part)
                    _known(f"evidence.{key}.{part}", named, known)
        shown: dict[str, Collection[str]] = {"table3": self.alpacaeval, "verdicts": self.evidence}
        for table, names in self.tables.model_dump().items():
            for name in names:
                _known(f"tables.{table}", name, shown.get(table, self.reward_models))
        for figure, names in self.figures.model_dump().items():
            for name in names:
                decoded = figure in ("figure3", "figure4")
                _known(f"figures.{figure}", name, self.decoding if decoded else self.implicit_rewards)
                if figure == "figure4":
                    self._traded_off(f"figures.{figure}", name)
            self._told_apart(f"figures.{figure}", names, figure in ("figure3", "figure4"))
        for name in self.probe:
            _known("probe", name, self.probes)
        return self

    def _experiment(self, where: str, experiment: Experiment, recipes: Collection[str]) -> None:
        _known(f"{where}.dataset", experiment.dataset, self.datasets)
        _known(f"{where}.model", experiment.model, self.models)
        _known(f"{where}.recipe", experiment.recipe, recipes)
        for name in experiment.truncations:
            if parse(name).kind == "topshare":
                raise ValueError(f"{where}.truncations: '{name}' is for scoring only")

    def _implicit(self, where: str, implicit: ImplicitReward) -> None:
        _known(f"{where}.dataset", implicit.dataset, self.datasets)
        self._policy(where, implicit)

    def _told_apart(self, where: str, names: list[str], decoded: bool) -> None:
        if decoded:
            decodings = [self.decoding[name] for name in names]
            labels = [each.label or self.instructions[each.instructions].label for each in decodings]
        else:
            rewards = [self.implicit_rewards[name] for name in names]
            labels = [reward.label or self.datasets[reward.dataset].label for reward in rewards]
        for name, label in zip(names, labels, strict=True):
            if labels.count(label) > 1:
                raise ValueError(f"{where}: '{name}' and another are both called '{label}'; give it a label of its own")

    def _comparison(self, where: str, comparison: AlpacaEval) -> None:
        _known(f"{where}.instructions", comparison.instructions, self.instructions)
        _known(f"{where}.policies", comparison.policies, self.dpo)
        _known(f"{where}.judge", comparison.judge, self.judges)
        source = self.instructions[comparison.instructions].source
        if self.data_root and source.kind == "hub" and source.offline is not None:
            source = source.offline
        columns = getattr(source, "columns", None)
        if comparison.against == "stored" and (columns is None or columns.output is None):
            raise ValueError(
                f"{where}.against: '{comparison.instructions}' names no column with stored outputs; "
                "set its columns.output, or take base"
            )

    def _decoding(self, where: str, decoding: Decoding) -> None:
        _known(f"{where}.instructions", decoding.instructions, self.instructions)
        self._policy(where, decoding)
        _known(f"{where}.reward", decoding.reward, [j for j, judge in self.judges.items() if judge.kind != "api"])
        if decoding.texts is not None:
            _known(f"{where}.texts", decoding.texts, self.datasets)
            if decoding.prefix >= decoding.max_new_tokens:
                raise ValueError(f"{where}.prefix: {decoding.prefix} leaves no new token below max_new_tokens")
        for name in decoding.retrained:
            _known(f"{where}.retrained", name, self.dpo)
            self._retrained(f"{where}.retrained", name, decoding)

    def _retrained(self, where: str, name: str, decoding: Decoding) -> None:
        """A policy trained at another beta stands for a mixture only if it differs in beta alone."""
        if decoding.policy not in self.dpo:
            raise ValueError(f"{where}: the policy '{decoding.policy}' was not trained here, so its beta is unknown")
        own, other = self.dpo[decoding.policy], self.dpo[name]
        base = decoding.reference or own.model
        if (other.dataset, other.model) != (own.dataset, base):
            raise ValueError(f"{where}: '{name}' is not trained on '{own.dataset}' from '{base}', as the policy is")
        if "full" not in other.truncations:
            raise ValueError(f"{where}: '{name}' trains no model on full responses")
        recipes = [self.dpo_recipes[each.recipe].model_dump(exclude={"beta"}) for each in (own, other)]
        if differing := sorted(key for key in recipes[0] if recipes[0][key] != recipes[1][key]):
            raise ValueError(f"{where}: '{name}' differs from the policy in {', '.join(differing)}, not in beta alone")

    def _traded_off(self, where: str, name: str) -> None:
        decoding = self.decoding[name]
        if not (decoding.mixing and (decoding.length_control or decoding.kl_threshold)):
            raise ValueError(f"{where}: '{name}' needs `mixing`, and `length_control` or `kl_threshold` beside it")

    def _policy(self, where: str, user: ImplicitReward | Decoding) -> None:
        _known(f"{where}.policy", user.policy, [*self.dpo, *self.models])
        if user.reference is not None:
            _known(f"{where}.reference", user.reference, self.models)
        elif user.policy not in self.dpo:
            raise ValueError(f"{where}.reference: required where the policy '{user.policy}' is a base model")
        if user.policy in self.dpo and "full" not in self.dpo[user.policy].truncations:
            raise ValueError(f"{where}.policy: '{user.policy}' trains no model on full responses")

    def _judge(self, where: str, judge: Judge) -> None:
        if judge.kind == "planted":
            planted = [name for name, dataset in self.datasets.items() if dataset.source.kind == "planted"]
            _known(f"{where}.dataset", judge.dataset, planted)
        elif judge.kind == "trained":
            _known(f"{where}.experiment", judge.experiment, self.reward_models)
            _known(f"{where}.truncation", judge.truncation, self.reward_models[judge.experiment].truncations)
        elif judge.kind == "model":
            _known(f"{where}.model", judge.model, self.models)


def _known(where: str, name: str, among: Collection[str]) -> None:
    if name not in among:
        raise ValueError(f"{where}: '{name}' is not defined; allowed: {', '.join(sorted(among)) or 'none'}")
