"""Generated text: the instructions, the judges, AlpacaEval's comparisons and decoding with two models."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from shallow_signals.config.base import Closed
from shallow_signals.config.sources import Revision

Seed = Annotated[int, Field(ge=0)]


class InstructionColumns(Closed):
    """Which columns hold what; null where the data has none."""

    instruction: str = "instruction"  # a string, or a message list
    input: str | None = None  # put below the instruction where it is not empty
    output: str | None = None  # a stored answer, and ...
    generator: str | None = None  # ... the model that gave it


class InstructionFile(Closed):
    """A JSONL (also .gz) or Parquet file."""

    kind: Literal["file"] = "file"
    path: str  # absolute, or below `data_root`, or below the working directory
    columns: InstructionColumns = InstructionColumns()


class HubInstructions(Closed):
    """A data set, or one file, of the hub at a pinned revision."""

    kind: Literal["hub"] = "hub"
    repo: str
    revision: Revision | None = None  # null: resolved by `make pin` into pins.json
    file: str | None = None  # one JSON file of the repository, where its data set is a script (AlpacaEval)
    config_name: str | None = None
    split: str = "train"
    columns: InstructionColumns = InstructionColumns()
    offline: InstructionFile | None = None  # the same rows below `data_root`, used when that is set


class PlantedInstructions(Closed):
    """Prompts of the planted world that no model was trained on."""

    kind: Literal["planted"] = "planted"
    seed: Seed


class PairInstructions(Closed):
    """The distinct prompts of a data set's held-out pairs."""

    kind: Literal["pairs"] = "pairs"
    dataset: str


InstructionSource = Annotated[
    HubInstructions | InstructionFile | PlantedInstructions | PairInstructions, Field(discriminator="kind")
]


class Instructions(Closed):
    """A set of prompts to generate from."""

    label: str
    source: InstructionSource
    rows: int | None = Field(default=None, ge=1)  # a sample, drawn by hash of `seed` and content; null: all
    seed: Seed = 0

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.source.kind == "planted" and self.rows is None:
            raise ValueError("rows: required where the source is planted")
        return self


class ApiJudge(Closed):
    """A language model behind an OpenAI-compatible service, asked as AlpacaEval asks. Its key is in the environment."""

    kind: Literal["api"] = "api"
    model: str  # dated: an undated name changes under the results
    input_price: float = Field(ge=0)  # dollars per million tokens
    output_price: float = Field(ge=0)
    base_url: str = "https://api.openai.com/v1"
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = Field(default=8, ge=1)  # requests in flight
    timeout: float = Field(default=60.0, gt=0)  # seconds
    allow_unjudged: bool = False  # true: count the comparisons it refuses; false: end with an error


class PlantedJudge(Closed):
    """The true reward of a planted data set's world."""

    kind: Literal["planted"] = "planted"
    dataset: str


class TrainedJudge(Closed):
    """A reward model of this run, the first seed's."""

    kind: Literal["trained"] = "trained"
    experiment: str
    truncation: str = "full"


class ModelJudge(Closed):
    """A published reward model: an entry of `models` with a sequence-classification head."""

    kind: Literal["model"] = "model"
    model: str
    max_length: int = Field(default=4096, ge=8)


Judge = Annotated[ApiJudge | PlantedJudge | TrainedJudge | ModelJudge, Field(discriminator="kind")]


class LengthControl(Closed):
    """Files of AlpacaEval's length control; what is null is stood in for, and the number is named accordingly."""

    repo: str = "tatsu-lab/alpaca_eval"
    revision: Revision | None = None
    gamed: str | None = None  # df_gamed.csv, the regulariser
    difficulty: str | None = None  # instruction_difficulty.csv
    offline: str | None = None  # a folder below `data_root` that holds both, used when that is set


class AlpacaEval(Closed):
    """Win rates of a DPO experiment's policies (Table 3)."""

    label: str | None = None  # null: the experiment's label
    instructions: str
    policies: str  # a DPO experiment: its base model and all its truncations, the first seed's
    judge: str
    against: Literal["stored", "base"] = "base"  # the instructions' stored outputs, or the base model's own
    length_control: LengthControl = LengthControl()
    max_new_tokens: int = Field(default=2048, ge=1)
    greedy: bool = False  # false: temperature 1
    seed: Seed = 42
    engine: Literal["transformers", "vllm"] = "transformers"
    batch: int = Field(default=32, ge=1)  # responses side by side


class Decoding(Closed):
    """A policy and its reference decoded together (Figures 3 and 4)."""

    label: str | None = None  # null: the instructions' label
    instructions: str
    policy: str  # a DPO experiment (its first model trained on full responses) or a base model
    reference: str | None = None  # a base model; null: the one that the DPO experiment started from
    reward: str  # a judge that scores
    mixing: list[Annotated[float, Field(gt=0)]] = []  # a of section 5.2
    length_control: list[Annotated[int, Field(ge=1)]] = []  # t: tokens taken from the policy
    kl_threshold: list[Annotated[float, Field(ge=0)]] = []  # b, in nats
    fallback: Literal["reference", "mixture"] = "reference"  # where the KL stays below b; the mixture is a = 0.5
    monte_carlo: int | None = Field(default=None, ge=2)  # K of the paper's estimator; null: the exact KL
    samples: int = Field(default=1, ge=1)  # responses a prompt and strategy
    max_new_tokens: int = Field(default=512, ge=1)
    seed: Seed = 42
    batch: int = Field(default=32, ge=1)  # responses side by side
    texts: str | None = None  # a data set: KL on its held-out chosen and rejected responses, and after their beginnings
    text_rows: int = Field(default=200, ge=1)  # pairs of it, drawn by hash
    prefix: int = Field(default=8, ge=1)  # tokens of a chosen response that the policy continues
    retrained: list[str] = []  # DPO experiments at another beta: the mixture's independent check
