"""Reward models of each chat template, for the tests of what scores them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from scored_pairs import Family


@pytest.fixture(scope="module", params=["chatml", "llama3", "gemma"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return _family(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return _family("chatml", tmp_path_factory)


def _family(name: str, folders: pytest.TempPathFactory) -> Family:
    from scored_pairs import Family  # brings transformers, which most unit tests do without

    return Family(name, folders.mktemp(name))
