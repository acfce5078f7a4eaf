"""One stream for every kind of source: raw rows with what became of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from shallow_signals.config.sources import DataSource, FileSource, HubSource, PlantedSource
from shallow_signals.data import hub, local, planted
from shallow_signals.data.convert import Converter, columns_converter, convert, hub_converter, mapped, offline_converter
from shallow_signals.data.local import Reading
from shallow_signals.data.quarantine import Filtered, Outcome, Rejected, shown
from shallow_signals.provenance import content_hash

Split = Literal["train", "test"]


class Item(NamedTuple):
    """A raw row and its outcomes: at least one, several where a row holds several pairs."""

    number: int
    row: object
    outcomes: list[Outcome]
    split: Split | None  # what the source says where the row itself doesn't


@dataclass(frozen=True)
class Feed:
    """A source, ready to be read once."""

    name: str  # the `source` column of the pairs: repository, file or world
    identity: dict[str, Any]  # what the manifest says of it: revision, or file and checksum
    items: Iterator[Item]
    pairs_per_cluster: int | None = None  # at most as many pairs of one cluster are kept


def open_feed(source: DataSource, data_root: Path | None, pins: Mapping[str, str]) -> Feed:
    """Open a source.

    A hub source with an `offline` file is read from that file when `data_root` is set. Without a revision of its own it
    takes the one in `pins` (repository -> commit). Raises `InputError`, here or while the items are read.
    """
    if isinstance(source, PlantedSource):
        generated = enumerate(planted.generate(source), 1)
        return Feed(
            f"planted:{source.profile}", source.model_dump(), (Item(n, pair, [pair], None) for n, pair in generated)
        )
    if isinstance(source, FileSource):
        path = local.resolve(source.path, data_root)
        items = _file_items(path, source, columns_converter(source.columns), None)
        return Feed(path.name, {"kind": "file"} | _file_identity(path), items)
    return _hub_feed(source, data_root, pins)


def _hub_feed(source: HubSource, data_root: Path | None, pins: Mapping[str, str]) -> Feed:
    revision = source.revision or pins.get(source.repo)
    identity: dict[str, Any] = {"kind": "hub", "repo": source.repo, "revision": revision, "converter": source.converter}
    # A benchmark has no training part.
    split: Split | None = "test" if source.converter == "rewardbench" else None
    cap = source.pairs_per_post if source.converter == "shp" else None
    if data_root is not None and source.offline is not None:
        path = local.resolve(source.offline.path, data_root)
        items = _file_items(path, source.offline, offline_converter(source, source.offline.columns), split)
        return Feed(source.repo, identity | {"read_from": _file_identity(path)}, items, cap)
    parts = [(source.split, split)]
    if source.test_split is not None:
        parts = [(source.split, "train"), (source.test_split, "test")]
    loaded = [(hub.load(source, name, revision), part) for name, part in parts]
    identity |= {"config_name": source.config_name, "data_dir": source.data_dir, "splits": [name for name, _ in parts]}
    if Path(source.repo).is_dir():
        identity["content"] = content_hash(Path(source.repo))
    else:
        identity["commit"] = hub.commit_of(loaded[0][0])
    return Feed(source.repo, identity, _hub_items(source, loaded), cap)


def _hub_items(source: HubSource, loaded: list[tuple[Any, Split | None]]) -> Iterator[Item]:
    for dataset, split in loaded:
        converter = hub_converter(source, dataset.column_names)
        for reading in hub.read_rows(dataset, source):
            yield _item(reading, converter, split)


def _file_items(path: Path, source: FileSource, converter: Converter, split: Split | None) -> Iterator[Item]:
    needed = mapped(source.columns) + ([source.keep_where] if source.keep_where else [])
    for reading in local.read_rows(path, needed):
        left_out = _left_out(reading.row, source.keep_where)
        if left_out is None or reading.problem is not None:
            yield _item(reading, converter, split)
        else:
            yield Item(reading.number, reading.row, [left_out], split)


def _item(reading: Reading, converter: Converter, split: Split | None) -> Item:
    outcomes: list[Outcome] = [reading.problem] if reading.problem else convert(converter, reading.row)
    return Item(reading.number, reading.row, outcomes, split)


def _left_out(row: object, column: str | None) -> Outcome | None:
    """Why the boolean column leaves a row out, or None."""
    if column is None or not isinstance(row, dict):
        return None
    value = row.get(column)
    if value is None or value is False:
        return Filtered("keep_where")
    return (
        None if value is True else Rejected("wrong_type", f"{shown(column)} must be true or false, not {shown(value)}")
    )


def _file_identity(path: Path) -> dict[str, str]:
    return {"file": path.name, "sha256": local.sha256(path)}
