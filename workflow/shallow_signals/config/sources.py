"""Where data sets and models come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shallow_signals.config.base import Closed

Aspect = Literal["helpfulness", "honesty", "instruction_following", "truthfulness"]
Converter = Literal[
    "message_lists",  # Skywork, RLHFlow, ultrafeedback_binarized, HelpSteer2: chosen / rejected message lists
    "ultrafeedback_aspects",  # openbmb/UltraFeedback: four completions with string ratings per aspect
    "shp",  # stanfordnlp/SHP
    "rewardbench",  # allenai/reward-bench
    "hh_rlhf",  # Anthropic/hh-rlhf: one string with Human / Assistant turns
    "columns",  # plain columns, by `Columns`
]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{7,40}$")]


class Columns(Closed):
    """Which columns hold what; null where the data has none."""

    prompt: str = "prompt"  # a string, or a message list
    chosen: str = "chosen"  # a string, or a message list whose last turn is the response
    rejected: str = "rejected"
    cluster: str | None = None  # the unit of the bootstrap (post, topic); null: the prompt
    subset: str | None = None
    margin: str | None = None
    generator: str | None = None  # the model that wrote the response set against the baseline
    split: str | None = None


class FileSource(Closed):
    """A JSONL (also .gz) or Parquet file with a column mapping."""

    kind: Literal["file"] = "file"
    path: str  # absolute, or below `data_root`, or below the working directory
    columns: Columns = Columns()
    keep_where: str | None = None  # name of a boolean column: only its true rows are read


class HubSource(Closed):
    """A data set of the Hugging Face hub (or a local folder in the hub's layout), at a pinned revision."""

    kind: Literal["hub"] = "hub"
    repo: str
    revision: Revision | None = None  # null: resolved by `make pin` into pins.json
    config_name: str | None = None
    data_dir: str | None = None
    split: str = "train"
    test_split: str | None = None  # null: the test part is drawn from `split`
    converter: Converter
    columns: Columns = Columns()  # read by the converter `columns` only
    aspect: Aspect | None = None  # read by `ultrafeedback_aspects` only
    min_score_ratio: float = Field(default=2.0, ge=1.0)  # read by `shp` only: kept when larger
    pairs_per_post: int = Field(default=5, ge=1)  # read by `shp` only
    offline: FileSource | None = None  # the same rows below `data_root`, used when that is set


class PlantedSource(Closed):
    """A generated world whose signal position is known (docs/planted-world.md)."""

    kind: Literal["planted"] = "planted"
    profile: Literal["front", "uniform", "back", "length"]
    pairs: int = Field(ge=1)
    test_pairs: int = Field(ge=1)
    seed: int = Field(ge=0)
    persistence: float = Field(default=0.0, ge=0.0, lt=1.0)  # chance that a sentence repeats its predecessor's quality
    decay: float = Field(default=0.6, gt=0.0, le=1.0)  # weight ratio of neighbouring sentences (front, back)
    sharpness: float = Field(default=3.0, gt=0.0)  # Bradley-Terry scale of the true reward
    aspect: Aspect | None = None
    benchmark: bool = False  # RewardBench-like subsets instead of a train / test split


DataSource = Annotated[HubSource | FileSource | PlantedSource, Field(discriminator="kind")]


class HubModel(Closed):
    """A model of the hub at a pinned revision."""

    kind: Literal["hub"] = "hub"
    repo: str
    revision: Revision | None = None


class FolderModel(Closed):
    """An ordinary checkpoint in a local folder."""

    kind: Literal["folder"] = "folder"
    path: str


class PackagedModel(Closed):
    """A GGUF file that an installed Python package carries; converted once to an ordinary checkpoint."""

    kind: Literal["package"] = "package"
    package: str  # distribution name
    file: str  # the file's name inside the package
    sha256: Sha256


class TinyModel(Closed):
    """A tiny Llama with its own BPE tokenizer, trained on unlabelled responses of a planted world."""

    kind: Literal["tiny"] = "tiny"
    texts: int = Field(ge=100)
    epochs: int = Field(ge=1)
    seed: int = Field(ge=0)
    vocabulary: int = Field(default=512, ge=300)
    hidden: int = Field(default=96, ge=16)
    layers: int = Field(default=3, ge=1)
    heads: int = Field(default=4, ge=1)
    learning_rate: float = Field(default=3e-3, gt=0)


ModelSource = Annotated[HubModel | FolderModel | PackagedModel | TinyModel, Field(discriminator="kind")]


class Dataset(Closed):
    """A preference data set: a source, its split and its size."""

    label: str  # as tables and figures print it
    source: DataSource
    holdout: float = Field(default=0.0, ge=0.0, lt=1.0)  # share held out, by hash; 0: trained on whole
    split_by: Literal["prompt", "cluster"] = "prompt"
    train_pairs: int | None = Field(default=None, ge=1)  # a subset, drawn by hash of the pair's content
    test_pairs: int | None = Field(default=None, ge=1)


class Model(Closed):
    """A base model and how text is put to it."""

    label: str
    source: ModelSource
    bos: Literal["auto", "never"] = "auto"  # auto: exactly once, if the tokenizer has one that it or its template adds
