"""Pins: every environment's agree with the lock, with one another, and with what the packages themselves ask for."""

from __future__ import annotations

import re
import runpy
import tomllib
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import openrlhf_setup as beside
from shallow_signals.training.openrlhf_command import VERSION

ROOT = Path(__file__).resolve().parents[2]
ENVS = ROOT / "envs"
LISTS = ["requirements.lock", *(f"envs/{path.name}" for path in sorted(ENVS.glob("*.txt")))]
POST_DEPLOY = (ENVS / "openrlhf.post-deploy.sh").read_text(encoding="utf-8")


def pins(name: str) -> dict[str, Version]:
    """Package and version of every line of a list."""
    found = {}
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        if line := line.split("#")[0].strip():
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", line)
            assert match, f"{name}: {line} is no exact pin"
            found[canonicalize_name(match[1])] = Version(match[2])
    return found


def unmet(requires: list[str], found: dict[str, Version]) -> list[str]:
    """Requirements (markers of this platform) that a list does not fulfil."""
    wrong = []
    for text in requires:
        need = Requirement(text)
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            version = found.get(canonicalize_name(need.name))
            if version is None or not need.specifier.contains(version, prereleases=True):
                wrong.append(f"{text} (pinned: {version})")
    return wrong


@pytest.mark.parametrize("name", ["core", "openrlhf", "vllm", "rewardbench"])
def test_an_environment_is_its_lists(name: str) -> None:
    """And holds no path: the workflow engine builds it from a copy that stands elsewhere."""
    written = (ENVS / f"{name}.yaml").read_text(encoding="utf-8")
    module = runpy.run_path(str(ENVS / "write.py"))
    assert written == module["environment"](name), "run `make envs`"
    environment = yaml.safe_load(written)
    packages = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    stated = {canonicalize_name(line.split("==")[0]): Version(line.split("==")[1]) for line in packages}
    lists = [pins(str((ENVS / file).resolve().relative_to(ROOT))) for file in module["LISTS"][name][1]]
    assert stated == {package: version for found in lists for package, version in found.items()}
    assert "python=3.11" in environment["dependencies"]  # scripts hand pickled values from one environment to the other


@pytest.mark.parametrize("name", LISTS)
def test_what_files_and_programs_share_has_one_version(name: str) -> None:
    """Parquet files and shards pass between environments; torch decides which CUDA they are built for."""
    lock, found = pins("requirements.lock"), pins(name)
    for package in ("torch", "pyarrow", "pydantic", "numpy", "safetensors", "setuptools"):
        if package in found:
            assert found[package] == lock[package], package


def test_the_lock_holds_what_the_project_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert not unmet([*project["dependencies"], *project["optional-dependencies"]["dev"]], pins("requirements.lock"))


def test_the_lock_is_what_is_tested() -> None:
    """The versions that this very test runs with."""
    lock = pins("requirements.lock")
    for name in ("torch", "transformers", "trl", "datasets", "peft", "accelerate", "tokenizers", "snakemake"):
        assert Version(Version(distribution(name).version).base_version) == lock[name]


def openrlhf_pins() -> dict[str, Version]:
    """Of the whole environment: its list, and what is built against the installed torch."""
    built = {name: Version(version) for name, version in re.findall(r"([a-z-]+)==([0-9.]+)", POST_DEPLOY)}
    assert built["openrlhf"] == Version(VERSION)
    return pins("envs/openrlhf.txt") | built


def test_openrlhfs_environment_is_what_openrlhf_asks_for() -> None:
    """Against the requirements that the package itself states."""
    stated = Distribution.at(beside.installed() / f"openrlhf-{VERSION}.dist-info").requires or []
    assert len(stated) > 20
    found = openrlhf_pins()
    assert not unmet(stated, found)
    assert unmet(stated, {**found, "transformers": pins("requirements.lock")["transformers"]})  # it can't share ours


def test_the_tested_openrlhf_is_the_deployed_one() -> None:
    deployed = openrlhf_pins()
    assert {name: deployed[name] for name in pins("envs/openrlhf-parser.txt")} == pins("envs/openrlhf-parser.txt")


def test_rewardbenchs_environment_is_what_rewardbench_asks_for() -> None:
    found = pins("envs/rewardbench.txt")
    stated = distribution("rewardbench").requires or []
    assert not unmet(stated, found)
    assert unmet(stated, pins("requirements.lock"))
    assert found["rewardbench"] == pins("envs/without-dependencies.txt")["rewardbench"]


def test_a_gpu_adds_what_the_recipes_ask_for() -> None:
    """Paged AdamW is bitsandbytes'."""
    assert "paged_adamw_32bit" in (ROOT / "config.yaml").read_text(encoding="utf-8")
    assert pins("envs/gpu.txt")["bitsandbytes"] == pins("envs/openrlhf.txt")["bitsandbytes"]


def test_the_image_is_the_locked_environment() -> None:
    recipe = (ENVS / "Dockerfile").read_text(encoding="utf-8")
    assert "make env" in recipe
    assert "envs/gpu.txt" in recipe
    assert "python:3.11" in recipe
