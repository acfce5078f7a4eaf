"""The configuration: closed, explained, merged, and in step with its written schema."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from shallow_signals.config import schema
from shallow_signals.config.hashing import config_hash
from shallow_signals.config.load import ConfigError, json_schema, load_study
from shallow_signals.config.pin import merge, open_revisions
from shallow_signals.config.truncation import PATTERN, parse

ROOT = Path(__file__).resolve().parents[2]


def read(*names: str) -> dict[str, Any]:
    """The named configuration files, merged in order."""
    merged: dict[str, Any] = {}
    for name in names:
        merged = merge(merged, yaml.safe_load((ROOT / name).read_text(encoding="utf-8")))
    return merged


def refused(config: dict[str, Any], path: tuple[str, ...], value: object, words: list[str]) -> None:
    """With `value` at `path` the configuration is refused, in these words."""
    node = config
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    with pytest.raises(ConfigError) as error:
        load_study(config)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("overlay", [None, "config/demo.yaml", "config/small.yaml"])
def test_shipped_configurations_are_valid(overlay: str | None) -> None:
    config = read("config.yaml", *([overlay] if overlay else []))
    study = load_study(config)
    jsonschema.validate(config, json_schema())
    assert study.tables.table1


def test_written_schema_is_the_models_schema() -> None:
    written = json.loads(schema.PATH.read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(json_schema()))


def test_written_schema_is_closed() -> None:
    config = read("config.yaml")
    config["datasets"]["skywork"]["sauce"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(config, json.loads(schema.PATH.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("datasets", "skywork", "source", "reop"), "x", ["datasets.skywork.source.reop", "unknown key", "repo"]),
        (("datasets", "skywork", "holdout"), 1.5, ["datasets.skywork.holdout", "1.5", "less than 1"]),
        (("datasets", "shp", "source", "converter"), "shpp", ["converter", "'shpp'", "'shp'"]),
        (("models", "gemma_2b_it", "source", "kind"), "hubb", ["models.gemma_2b_it.source", "hubb", "'hub'"]),
        (("reward_recipes", "rlhflow_gemma_2b", "learning_rate"), -1, ["learning_rate", "-1", "greater than 0"]),
        (("reward_recipes", "rlhflow_gemma_2b", "lr"), 1, ["reward_recipes.rlhflow_gemma_2b.lr", "learning_rate"]),
        (("reward_models", "skywork", "model"), "gema", ["reward_models.skywork.model", "gema", "gemma_2b_it"]),
        (("reward_models", "skywork", "truncations"), ["topshare50"], ["topshare50", "scoring only"]),
        (("figures", "figure1"), ["skywrok"], ["figures.figure1", "skywrok", "shp"]),
        (("implicit_rewards", "shp", "dataset"), "skywork", ["figures.position", "'skywork'", "Skywork-Preference"]),
        (("implicit_rewards", "shp", "positions"), [0], ["implicit_rewards.shp.positions.0", "greater than"]),
        (("run",), "../x", ["run", "'../x'"]),
    ],
)
def test_a_wrong_key_is_named_with_its_value_and_what_is_allowed(
    path: tuple[str, ...], value: object, words: list[str]
) -> None:
    config = copy.deepcopy(read("config.yaml"))
    refused(config, path, value, words)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("decoding", "planted_skywork", "reward"), "truht", ["decoding.planted_skywork.reward", "truht", "truth"]),
        (("decoding", "planted_skywork", "fallback"), "policy", ["fallback", "'policy'", "'reference' or 'mixture'"]),
        (("decoding", "planted_skywork", "mixing"), [0.5, 0], ["decoding.planted_skywork.mixing.1", "greater than 0"]),
        (("decoding", "planted_skywork", "mixing"), [], ["figures.figure4", "planted_skywork", "`mixing`"]),
        (("decoding", "planted_skywork", "prefix"), 80, ["decoding.planted_skywork.prefix", "80", "max_new_tokens"]),
        (
            ("dpo", "planted_skywork_beta020", "recipe"),
            "tiny_lora",
            ["learning_rate", "not in beta alone"],
        ),
        (("decoding", "planted_skywork", "retrained"), ["planted_shp"], ["retrained", "'planted_shp'", "'tiny'"]),
        (
            ("decoding", "planted_skywork", "policy"),
            "llama3_sft",
            ["decoding.planted_skywork", "reference", "required"],
        ),
        (("decoding", "planted_front", "label"), "Planted Skywork", ["figures.figure3", "both called"]),
    ],
)
def test_a_decoding_that_can_not_be_run_is_refused(path: tuple[str, ...], value: object, words: list[str]) -> None:
    config = read("config.yaml", "config/demo.yaml")
    refused(config, path, value, words)


def test_missing_key_is_named() -> None:
    config = read("config.yaml")
    del config["datasets"]["shp"]["source"]["converter"]
    with pytest.raises(ConfigError, match=r"datasets\.shp\.source\.converter: required key is missing"):
        load_study(config)


def test_overlays_merge_dictionaries_and_replace_lists() -> None:
    study = load_study(read("config.yaml", "config/demo.yaml"))
    assert "skywork" in study.datasets
    assert "planted_skywork" in study.datasets
    assert study.tables.table4 == ["planted_shp"]


def test_hash_depends_on_content_not_on_order() -> None:
    config = read("config.yaml")
    turned = dict(reversed(list(config.items())))
    assert config_hash(load_study(config)) == config_hash(load_study(turned))
    turned["cuts"] = [50]
    assert config_hash(load_study(config)) != config_hash(load_study(turned))


def test_open_revisions_lists_what_a_pin_is_needed_for() -> None:
    found = open_revisions(load_study(read("config.yaml")))
    assert ("google/gemma-2b-it", "model") in found
    assert ("stanfordnlp/SHP", "dataset") in found
    assert all(repo != "RLHFlow/pair_data_v2_80K_wsafety" for repo, _ in found)


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("full", ("full", "head", "token", None, None)),
        ("head50", ("cut", "head", "token", "1/2", None)),
        ("tail33", ("cut", "tail", "token", "33/100", None)),
        ("window128tok", ("cut", "window", "token", None, 128)),
        ("head50-char", ("cut", "head", "char", "1/2", None)),
        ("head400chars", ("cut", "head", "char", None, 400)),
        ("topshare50", ("topshare", "head", "token", "1/2", None)),
        ("pairs50", ("pairs", "head", "token", "1/2", None)),
        ("half2", ("half", "head", "token", None, None)),
    ],
)
def test_truncation_names(name: str, facts: tuple[object, ...]) -> None:
    import re

    found = parse(name)
    ratio = None if found.ratio is None else str(found.ratio)
    assert (found.kind, found.side, found.unit, ratio, found.length) == facts
    assert re.fullmatch(PATTERN, name)


@pytest.mark.parametrize(
    "name", ["", "head", "head0", "head101", "hed50", "head50tokens", "min", "shuffled", "pairs200", "half3"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="allowed: full"):
        parse(name)
