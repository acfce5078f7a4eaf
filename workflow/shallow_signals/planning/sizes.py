"""Where a plan's lengths and shapes come from: the run itself, sources that lie here, or the configuration's facts."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shallow_signals.config.planning import ModelShape
from shallow_signals.config.sources import FolderModel, PackagedModel, PlantedSource, TinyModel
from shallow_signals.config.study import Study
from shallow_signals.data.pairs import half_of
from shallow_signals.files import InputError, read_parquet
from shallow_signals.planning.lengths import Lengths
from shallow_signals.planning.shape import read_shape, tiny_shape

SAMPLE = 400  # pairs of a split that are tokenised for a plan
Split = Literal["train", "test"]


@dataclass
class Sizes:
    """Lengths of data sets and shapes of models of one study; each is looked up once, and `origins` says where."""

    study: Study
    results: Path
    origins: dict[str, str] = field(default_factory=dict)
    _lengths: dict[tuple[str, str], dict[str, Lengths]] = field(default_factory=dict)
    _tokenizers: dict[str, Any] = field(default_factory=dict)

    def lengths(self, dataset: str, model: str, split: Split | None = None) -> Lengths:
        """Of a data set's pairs under a model's tokenizer; both splits together where none is named."""
        key = (dataset, model)
        if key not in self._lengths:
            self._lengths[key] = self._find(dataset, model)
        found = self._lengths[key]
        return found[split] if split else _joined(found["train"], found["test"])

    def shape(self, model: str) -> ModelShape:
        """Of a base model."""
        folder = self.results / "models" / "base" / model
        if (folder / "config.json").is_file():
            return read_shape(folder)
        source = self.study.models[model].source
        if isinstance(source, TinyModel):
            return tiny_shape(source)
        if isinstance(source, FolderModel) and (Path(source.path) / "config.json").is_file():
            return read_shape(Path(source.path))
        if model in self.study.planning.models:
            return self.study.planning.models[model]
        raise InputError(f"planning.models.{model}: the model is not here and its shape is not given; add it")

    def _find(self, dataset: str, model: str) -> dict[str, Lengths]:
        tokens = self.results / "data" / dataset / "tokens" / f"{model}.parquet"
        if tokens.is_file():
            self.origins[f"{dataset}, {model}"] = "the run's own tokens"
            return _of_tokens(read_parquet(tokens), json.loads(pq.read_schema(tokens).metadata[b"closing_ids"]), None)
        if (tokenizer := self._tokenizer(model)) is not None and self._is_here(dataset):
            self.origins[f"{dataset}, {model}"] = "a sample of the source"
            return self._sampled(dataset, model, tokenizer)
        if dataset in self.study.planning.datasets:
            self.origins[f"{dataset}, {model}"] = "the configuration's facts"
            return self._stated(dataset)
        raise InputError(
            f"planning.datasets.{dataset}: neither the data set nor its size is here; give the size, or make its tokens"
        )

    def _stated(self, dataset: str) -> dict[str, Lengths]:
        size, spec = self.study.planning.datasets[dataset], self.study.datasets[dataset]
        one, response = np.ones(1), np.full(1, size.response)
        pairs = {
            "train": min(size.train * (1 - spec.holdout), spec.train_pairs or np.inf),
            "test": min(size.test + size.train * spec.holdout, spec.test_pairs or np.inf),
        }
        return {split: Lengths(one * size.prompt, response, response, count, 1) for split, count in pairs.items()}

    def _is_here(self, dataset: str) -> bool:
        source = self.study.datasets[dataset].source
        if source.kind == "planted":
            return True
        offline = source if source.kind == "file" else source.offline if self.study.data_root else None
        return offline is not None and (Path(self.study.data_root or "") / offline.path).is_file()

    def _sampled(self, dataset: str, model: str, tokenizer: Any) -> dict[str, Lengths]:
        """The source is read as the run will read it, and the beginning of each split tokenised."""
        from shallow_signals.data.ingest import ingest
        from shallow_signals.models.tokens import tokenize_pairs

        spec = self.study.datasets[dataset]
        counts = None
        if isinstance(source := spec.source, PlantedSource):
            counts = {"train": source.pairs, "test": source.test_pairs}
            few = {"pairs": min(source.pairs, SAMPLE), "test_pairs": min(source.test_pairs, SAMPLE)}
            spec = spec.model_copy(update={"source": source.model_copy(update=few)})
        with tempfile.TemporaryDirectory() as folder:
            root = Path(self.study.data_root) if self.study.data_root else None
            ingest(spec, dataset, Path(folder), root, {})
            pairs = read_parquet(Path(folder) / "pairs.parquet")
        parts = {split: pairs.filter(pc.equal(pairs["split"], split)) for split in ("train", "test")}
        counts = counts or {split: part.num_rows for split, part in parts.items()}
        sample = pa.concat_tables([part.slice(0, SAMPLE) for part in parts.values()])
        tokens, _ = tokenize_pairs(sample, tokenizer, self.study.models[model].bos)
        return _of_tokens(tokens, json.loads(tokens.schema.metadata[b"closing_ids"]), counts)

    def _tokenizer(self, model: str) -> Any:
        """The model's tokenizer if it can be had without the hub; None otherwise."""
        if model not in self._tokenizers:
            self._tokenizers[model] = _tokenizer_of(self.study.models[model].source)
        return self._tokenizers[model]


def _tokenizer_of(source: Any) -> Any:
    if isinstance(source, TinyModel):
        from shallow_signals.data.planted import responses
        from shallow_signals.models.tiny import train_tokenizer

        return train_tokenizer(responses(source.seed, source.texts), source.vocabulary)
    if isinstance(source, FolderModel):
        from shallow_signals.models.load import load_tokenizer

        return load_tokenizer(Path(source.path))
    if isinstance(source, PackagedModel):
        from shallow_signals.models.sources import packaged_tokenizer

        return packaged_tokenizer(source)
    return None


def _of_tokens(table: pa.Table, closing: list[int], counts: dict[str, int] | None) -> dict[str, Lengths]:
    """By split; `counts` are the pairs that a sample stands for."""
    found = {}
    for split in ("train", "test"):
        part = table.filter(pc.equal(table["split"], split))
        prompt, chosen, rejected = (
            pc.list_value_length(part[f"{name}_ids"]).to_numpy().astype(float)
            for name in ("prompt", "chosen", "rejected")
        )
        pairs = counts[split] if counts else part.num_rows
        half = np.array([half_of(name) for name in part["prompt_id"].to_pylist()], dtype=np.int64)
        found[split] = Lengths(prompt, chosen, rejected, pairs, len(closing), half)
    return found


def _joined(train: Lengths, test: Lengths) -> Lengths:
    """Both splits as one; each keeps its share."""
    parts = [part for part in (train, test) if len(part.prompt) and part.pairs]
    if len(parts) == 1:
        return parts[0]
    total = sum(part.pairs for part in parts)
    rows = max(len(part.prompt) for part in parts) * 4
    pick = [np.resize(np.arange(len(part.prompt)), max(1, round(rows * part.pairs / total))) for part in parts]
    prompt, chosen, rejected = (
        np.concatenate([getattr(part, name)[index] for part, index in zip(parts, pick, strict=True)])
        for name in ("prompt", "chosen", "rejected")
    )
    return Lengths(prompt, chosen, rejected, total, train.closing)
