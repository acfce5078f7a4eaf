"""Rows of a data set of the Hugging Face hub (or of a local folder in its layout), through `datasets.load_dataset`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shallow_signals.config.sources import HubSource
from shallow_signals.data.local import BATCH, Reading
from shallow_signals.files import InputError

_COMMIT = re.compile(r"[0-9a-f]{40}")


def load(source: HubSource, split: str, revision: str | None) -> Any:
    """One split as a `datasets.Dataset`.

    Every failure is an `InputError` of one line that names the repository and revision and says what to do.
    """
    import datasets

    try:
        dataset = datasets.load_dataset(
            source.repo, name=source.config_name, data_dir=source.data_dir, split=split, revision=revision
        )
    except Exception as error:
        raise InputError(explain(error, source, split, revision)) from error
    loaded = commit_of(dataset)
    if revision is not None and loaded is not None and not loaded.startswith(revision):
        # Where the hub is out of reach, `datasets` falls back on whatever revision its cache holds.
        raise InputError(
            f"{_named(source, revision)}: the hub is out of reach and the local cache holds another revision "
            f"({loaded}); run once on a connected machine"
        )
    if not len(dataset):
        raise InputError(f"{_named(source, revision)}: the split '{split}' holds no rows")
    return dataset


def read_rows(dataset: Any, source: HubSource) -> Iterator[Reading]:
    """Stream the rows of a loaded split."""
    number = 0
    try:
        for batch in dataset.iter(batch_size=BATCH):
            names = list(batch)
            for values in zip(*batch.values(), strict=True):
                number += 1
                yield Reading(number, dict(zip(names, values, strict=True)))
    except UnicodeDecodeError as error:
        raise InputError(f"{source.repo}: text that is no UTF-8 after row {number} ({error.reason})") from error


def download(repo: str, file: str, revision: str | None) -> Path:
    """One file of a data set's repository (or of a local folder in its layout); failures as in `load`."""
    if Path(repo).is_dir():
        path = Path(repo) / file
        if not path.is_file():
            raise InputError(f"data set {repo}: no file '{file}' in this folder")
        return path
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, file, repo_type="dataset", revision=revision))
    except Exception as error:
        as_source = HubSource(repo=repo, data_dir=file, converter="columns")
        raise InputError(explain(error, as_source, file, revision)) from error


def commit_of(dataset: Any) -> str | None:
    """The commit that a loaded data set was made from, read off its place in the cache; None for local folders."""
    parts = [part for file in dataset.cache_files for part in Path(file["filename"]).parts]
    return next((part for part in reversed(parts) if _COMMIT.fullmatch(part)), None)


def explain(error: BaseException, source: HubSource, split: str, revision: str | None) -> str:
    """One line for an error of `datasets` or `huggingface_hub`: what is wrong with which data set, and what to do."""
    named = _named(source, revision)
    chain = list(_chain(error))
    kinds = {kind.__name__ for link in chain for kind in type(link).__mro__}
    words = " ".join(str(link) for link in chain)
    if "GatedRepoError" in kinds or "gated dataset" in words:
        return (
            f"{named}: access is gated; accept its licence at https://huggingface.co/datasets/{source.repo} and log in "
            "(`hf auth login`, or set HF_TOKEN)"
        )
    if "RevisionNotFoundError" in kinds or ("Revision" in words and "doesn't exist" in words):
        return f"{named}: no such revision; check the key 'revision', or set it to null and run `make pin`"
    if kinds & {"OfflineModeIsEnabled", "ConnectionError", "ConnectError", "TimeoutException", "ConnectTimeout"}:
        return (
            f"{named}: the hub is out of reach and the data is not in the local cache; connect (and unset "
            "HF_HUB_OFFLINE), or set 'data_root' where the data set has an 'offline' file"
        )
    if "Unknown split" in words:
        return f"{named}: no split '{split}'; {_tail(words, 'Should be one of')}check the keys 'split' and 'test_split'"
    if "BuilderConfig" in words and "not found" in words:
        return (
            f"{named}: no configuration '{source.config_name}'; {_tail(words, 'Available')}check the key 'config_name'"
        )
    if kinds & {"RepositoryNotFoundError", "DatasetNotFoundError", "FileNotFoundError"}:
        return (
            f"{named}: not found; check the keys 'repo' and 'data_dir' (a private one needs `hf auth login`, a local "
            "folder must hold data files)"
        )
    deepest = error.__cause__ or error  # "an error occurred while generating" says less than what it arose from
    first = next((line.strip() for line in str(deepest).splitlines() if line.strip()), "no message")
    return f"{named}: can't be loaded ({type(deepest).__name__}: {first[:200]}); check its files, or fetch them again"


def _named(source: HubSource, revision: str | None) -> str:
    return f"data set {source.repo} (revision {revision or 'not pinned'})"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it arose from, nearest first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _tail(words: str, start: str) -> str:
    """The part of a message that lists what is allowed, or nothing."""
    found = re.search(rf"{start}:? (?:of )?\[([^\]]*)\]", words)
    return f"allowed: {found[1]}; " if found else ""
