"""The OpenRLHF backend against OpenRLHF's own parser, data class, forward, losses and checkpoints."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import checkpoints
import dpo_setup as dpo
import openrlhf_setup as beside
import realdata
import reward_setup as setup
from shallow_signals.config.load import ConfigError, load_study
from shallow_signals.config.recipes import DPORecipe, RewardRecipe
from shallow_signals.files import InputError
from shallow_signals.models.load import load_causal_lm, load_reward_model, load_tokenizer
from shallow_signals.models.templates import read_template
from shallow_signals.training import openrlhf
from shallow_signals.training.launch import RewardJob
from shallow_signals.training.launch_dpo import DPOJob
from shallow_signals.training.openrlhf_command import arguments
from shallow_signals.training.pairs import PairIds, read_pairs

ROOT = Path(__file__).resolve().parents[2]
PAIRS, LENGTH = 40, 700


def paper(**changes: Any) -> dict[str, Any]:
    """The paper's DPO recipe as the configuration ships it, with some values of it changed."""
    config = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    return {**config["dpo_recipes"]["openrlhf_llama"], **changes}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.llama3(tmp_path_factory.mktemp("llama") / "base")


@pytest.fixture(scope="module")
def real_shards(llama: Path, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Real conversations, whole and cut, as the workflow writes them."""
    folder = tmp_path_factory.mktemp("shards")
    table = realdata.real_pairs(shared_data, realdata.HARMLESS, PAIRS).to_pylist()
    tokens = dpo.tokens_file(llama, [{**row, "split": "train"} for row in table], folder)
    return {name: dpo.cut_shards(llama, tokens, name, folder / name) for name in ("full", "head50")}


@pytest.fixture(scope="module")
def dpo_job(llama: Path, real_shards: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> DPOJob:
    folder = tmp_path_factory.mktemp("dpo")
    recipe = DPORecipe(**paper(global_batch=8, max_length=LENGTH, attention="sdpa"))
    return DPOJob(
        shards=real_shards["head50"], base=llama, recipe=recipe, seed=3, out=folder / "out", state=folder / "state"
    )


@pytest.fixture(scope="module")
def dpo_answer(dpo_job: DPOJob) -> dict[str, Any]:
    """What OpenRLHF does with the paper's recipe; its policy is the base model with noise."""
    folder = dpo_job.state.parent / "asked"
    policy = folder / "policy"
    dpo.other_model(dpo_job.base).save_pretrained(policy)
    given = arguments(dpo_job, dpo_job.recipe, 4)
    return beside.ask("train_dpo", {"arguments": given, "read": True, "policy": str(policy)}, folder)


@pytest.fixture(scope="module")
def reward_job(llama: Path, real_shards: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> RewardJob:
    folder = tmp_path_factory.mktemp("reward")
    recipe = RewardRecipe(
        backend="openrlhf",
        learning_rate=1e-5,
        weight_decay=1e-3,
        epochs=2,
        global_batch=16,
        micro_batch=2,
        max_length=4096,
    )
    return RewardJob(
        shards=real_shards["full"], base=llama, recipe=recipe, seed=5, out=folder / "out", state=folder / "state"
    )


@pytest.fixture(scope="module")
def reward_answer(reward_job: RewardJob) -> dict[str, Any]:
    given = arguments(reward_job, reward_job.recipe, 8)
    return beside.ask("train_rm", {"arguments": given, "read": True}, reward_job.state.parent / "asked")


def ours(job: DPOJob | RewardJob, max_length: int = 10**6) -> list[PairIds]:
    """The training pairs as our own trainers read them."""
    closing = read_template(load_tokenizer(job.base), "auto").closing_ids
    return [PairIds.from_row(row) for row in read_pairs(job.shards, closing=closing, max_length=max_length)[0]]


def test_the_papers_recipe_reaches_openrlhf(dpo_job: DPOJob, dpo_answer: dict[str, Any]) -> None:
    """Every number of the recipe, under the name that OpenRLHF's own parser gives it."""
    args = dpo_answer["args"]
    assert args["adam"] == {"lr": 5e-7, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.0}
    assert (args["lr_scheduler"], args["lr_warmup_ratio"], args["min_lr_ratio"]) == ("cosine_with_min_lr", 0.03, 0.1)
    assert (args["max_norm"], args["optim"]) == (1.0, "adam")
    assert args["model"]["beta"] == 0.1
    assert args["model"]["gradient_checkpointing_enable"]
    assert not (args["model"]["label_smoothing"] or args["model"]["nll_loss_coef"] or args["model"]["ipo_enable"])
    assert (args["train"]["batch_size"], args["train"]["micro_batch_size"]) == (8, 1)
    assert (args["train"]["max_epochs"], args["train"]["seed"]) == (1, 3)
    assert (args["ds"]["zero_stage"], args["ds"]["param_dtype"], args["ds"]["packing_samples"]) == (3, "bf16", False)
    assert (args["data"]["max_len"], args["data"]["apply_chat_template"]) == (LENGTH, True)
    assert args["model"]["model_name_or_path"] == args["ref"]["model_name_or_path"] == str(dpo_job.base)
    assert args["ckpt"]["load_enable"]


def test_a_reward_recipe_reaches_openrlhf(reward_answer: dict[str, Any]) -> None:
    args = reward_answer["args"]
    assert args["adam"] == {"lr": 1e-5, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 1e-3}
    assert (args["train"]["batch_size"], args["train"]["micro_batch_size"], args["train"]["max_epochs"]) == (16, 2, 2)
    assert (args["model"]["loss_type"], args["model"]["margin_loss_enable"]) == ("sigmoid", False)
    assert (args["lr_scheduler"], args["ds"]["value_head_prefix"]) == ("cosine", "score")


def test_the_parser_refuses_what_it_does_not_know(dpo_job: DPOJob, tmp_path: Path) -> None:
    """Negative control: a misspelt argument and one of the other trainer."""
    given = arguments(dpo_job, dpo_job.recipe, 4)
    wrong = [*given, "--train.bach_size", "8", "--model.margin_loss_enable"]
    with pytest.raises(ValueError, match=r"unrecognized arguments: --train.bach_size 8 --model.margin_loss_enable"):
        beside.ask("train_dpo", {"arguments": wrong}, tmp_path)


def test_openrlhf_reads_whole_shards_as_we_do(reward_job: RewardJob, reward_answer: dict[str, Any]) -> None:
    pairs = [setup.both_texts(pair) for pair in ours(reward_job)]
    assert reward_answer["chosen"] == [chosen for chosen, _ in pairs]
    assert reward_answer["rejected"] == [rejected for _, rejected in pairs]


def same_texts(job: DPOJob, answer: dict[str, Any]) -> list[tuple[int, PairIds]]:
    """Number in OpenRLHF's batch, and pair, of those whose ids are the same there and here."""
    fitting = [pair for pair in ours(job) if len(pair.prompt) < LENGTH - 2]
    found = zip(answer["chosen"], answer["rejected"], fitting, strict=True)
    return [(n, pair) for n, (*theirs, pair) in enumerate(found) if tuple(theirs) == setup.both_texts(pair)]


def test_openrlhf_reads_cut_shards_as_we_do_but_for_what_is_counted(
    dpo_job: DPOJob, dpo_answer: dict[str, Any]
) -> None:
    """Long prompts left out, long texts cut on the right and ended by EOS; other ids where a cut re-tokenises."""
    counts = openrlhf.count_pairs(dpo_job.shards, dpo_job.recipe, 4)
    pairs = ours(dpo_job)
    fitting = [pair for pair in pairs if len(pair.prompt) < LENGTH - 2]
    assert len(pairs) > len(fitting) == counts["pairs"] == len(dpo_answer["chosen"])
    assert counts["prompts_too_long"] == len(pairs) - len(fitting)
    assert counts["cut_on_the_right"] == sum(max(map(len, setup.both_texts(pair))) > LENGTH for pair in fitting) > 0
    assert counts["steps"] == len(fitting) // 8
    theirs = [text for texts in zip(dpo_answer["chosen"], dpo_answer["rejected"], strict=True) for text in texts]
    eos = load_tokenizer(dpo_job.base).eos_token_id
    assert {text[-1] for text in theirs} == {eos}
    assert counts["tokens_per_epoch"] == pytest.approx(sum(map(len, theirs)), rel=0.01)
    split = json.loads((dpo_job.shards / "manifest.json").read_text(encoding="utf-8"))["splits"]["train"]
    accounted = split["retokenized_differently"] + split["stripped_by_the_template"] + counts["cut_on_the_right"]
    assert len(fitting) - len(same_texts(dpo_job, dpo_answer)) <= accounted < len(fitting) / 2


def test_dpo_losses_agree(dpo_job: DPOJob, dpo_answer: dict[str, Any], tmp_path: Path) -> None:
    """OpenRLHF's forward, masks and loss class against our trainer's margins, pair by pair."""
    same = same_texts(dpo_job, dpo_answer)
    pairs = [pair for _, pair in same]
    settings = dpo.recipe(beta=dpo_job.recipe.beta)
    policy = dpo_job.state.parent / "asked" / "policy"
    load_tokenizer(dpo_job.base).save_pretrained(policy)
    nothing = torch.zeros(len(pairs), 2)
    with torch.no_grad():
        base = dpo.trainer_on(dpo_job.base, pairs, nothing, settings, tmp_path)
        references = base.logps(base.model, pairs)
        trainer = dpo.trainer_on(policy, pairs, references, settings, tmp_path)
        margins = trainer.margins(trainer.model, {"pairs": pairs, "reference": references})
    losses = -torch.nn.functional.logsigmoid(margins)
    expected = torch.tensor([dpo_answer["losses"][number] for number, _ in same])
    torch.testing.assert_close(losses, expected, atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.05
    assert (expected - math.log(2)).abs().mean() > 0.05


def test_reward_losses_agree(reward_job: RewardJob, reward_answer: dict[str, Any], tmp_path: Path) -> None:
    """On the model that OpenRLHF saved, its head included."""
    trained = reward_job.state.parent / "asked" / "trained"
    pairs = ours(reward_job)
    trainer = setup.trainer_on(reward_job.base, pairs, setup.recipe(), tmp_path)
    model = load_reward_model(trained)
    model.config.pad_token_id = trainer.processing_class.pad_token_id  # else transformers takes one row at a time
    with torch.no_grad():
        margins = trainer.margins(model, {"pairs": pairs})
    losses = -torch.nn.functional.logsigmoid(margins)
    torch.testing.assert_close(losses, torch.tensor(reward_answer["losses"]), atol=1e-5, rtol=1e-5)
    assert losses.std() > 1e-3


def test_a_reward_model_is_converted(reward_job: RewardJob, reward_answer: dict[str, Any], tmp_path: Path) -> None:
    trained = reward_job.state.parent / "asked" / "trained"
    saved = json.loads((trained / "config.json").read_text(encoding="utf-8"))
    assert saved["architectures"] != ["LlamaForSequenceClassification"]
    assert "mean" in saved
    openrlhf.convert(trained, reward_job.base, tmp_path / "out", reward_model=True)
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert not {"mean", "std", "normalize_reward", "value_head_prefix"} & config.keys()
    assert list(config["id2label"]) == ["0"]
    before, after = load_file(trained / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name].bfloat16(), after[name]) for name in before)


def test_training_ends_with_the_contract(
    dpo_job: DPOJob, dpo_answer: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of `train` but the GPUs: what OpenRLHF saved and logged becomes an ordinary checkpoint and its facts."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(beside.installed())])
    from torch.utils.tensorboard import SummaryWriter

    trained = dpo_job.state.parent / "asked" / "trained"
    with pytest.raises(InputError, match="needs 4 GPUs, 0 are in sight"):
        openrlhf.train(dpo_job, dpo_job.recipe, 4)

    def run(command: list[str], job: DPOJob) -> None:
        shutil.copytree(trained, Path(command[command.index("--ckpt.output_dir") + 1]))
        log = SummaryWriter(str(Path(command[command.index("--logger.tensorboard_dir") + 1]) / "run"))
        for step, loss in enumerate((0.6931, 0.68, 0.66), 1):
            for name, value in {"loss_mean": loss, "acc_mean": 0.5, "lr": 1e-7, "grad_norm": 2.0}.items():
                log.add_scalar(f"train/{name}", value, step)
        log.close()

    monkeypatch.setattr(openrlhf, "run", run)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    facts = openrlhf.train(dpo_job, dpo_job.recipe, 4)
    assert (facts["first_loss"], facts["last_loss"]) == (pytest.approx(0.6931), pytest.approx(0.66))
    assert [entry["step"] for entry in facts["loss_history"]] == [1, 2, 3]
    assert facts["loss_history"][0]["grad_norm"] == 2.0
    assert facts["backend"] == "openrlhf 0.11.2"
    model = load_causal_lm(dpo_job.out)
    expected = load_file(dpo_job.state.parent / "asked" / "policy" / "model.safetensors")
    assert all(torch.equal(value, expected[name].bfloat16().float()) for name, value in model.state_dict().items())
    base = json.loads((dpo_job.base / "config.json").read_text(encoding="utf-8"))
    assert model.config.use_cache is True
    assert model.config.pad_token_id == base["pad_token_id"]
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (dpo_job.out / name).read_text() == (dpo_job.base / name).read_text()
    assert not [path for path in dpo_job.out.rglob("*") if path.suffix in (".bin", ".pt", ".py")]
    shutil.rmtree(dpo_job.out)
    assert openrlhf.train(dpo_job, dpo_job.recipe, 4) == facts  # put back without training again
    assert (dpo_job.out / "config.json").is_file()


def test_without_its_environment_the_message_says_what_to_do(dpo_job: DPOJob) -> None:
    with pytest.raises(InputError, match=r"needs openrlhf 0.11.2 \(found: none\); run with `--sdm conda`"):
        openrlhf.require_environment(1)


@pytest.mark.parametrize(
    ("checkpoint", "bos", "reward_model", "words"),
    [
        (checkpoints.gemma, "auto", False, "ends a turn with '<end_of_turn>"),
        (checkpoints.chatml, "auto", True, r"ends a turn with '<\|im_end\|>\\n'"),
        (checkpoints.chatml, "auto", False, None),
        (checkpoints.llama3, "auto", True, None),
        (checkpoints.llama3, "never", False, "BOS"),
    ],
)
def test_templates_that_openrlhf_would_end_otherwise_are_refused(
    checkpoint: Any, bos: Any, reward_model: bool, words: str | None, dpo_job: DPOJob, tmp_path: Path
) -> None:
    job = dpo_job.model_copy(update={"base": checkpoint(tmp_path), "bos": bos})
    template = read_template(load_tokenizer(job.base), bos)
    if words is None:
        openrlhf.refuse_template(job, template, reward_model=reward_model)
    else:
        with pytest.raises(InputError, match=words):
            openrlhf.refuse_template(job, template, reward_model=reward_model)


def test_code_of_a_checkpoint_is_refused(dpo_job: DPOJob, tmp_path: Path) -> None:
    """OpenRLHF loads with trust_remote_code."""
    job = dpo_job.model_copy(update={"base": checkpoints.llama3(tmp_path)})
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "x.Y"}}), encoding="utf-8")
    with pytest.raises(InputError, match="auto_map"):
        openrlhf.refuse_template(job, read_template(load_tokenizer(tmp_path), "auto"), reward_model=False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"end_of_turn": "drop"}, "end_of_turn: must be keep"),
        ({"lora": {"rank": 8}}, "lora: must be null"),
        ({"weights": "bfloat16"}, "weights: must be float32"),
        ({"compute": "float32"}, "compute: must be auto or bfloat16"),
        ({"optimizer": "paged_adamw_32bit"}, "optimizer: must be adamw_torch"),
        ({"epochs": 1.5}, "epochs: must be a whole number"),
        ({"sort_in_step": True}, "sort_in_step: must be false"),
        ({"share_prompt": True}, "share_prompt: must be false"),
    ],
)
def test_impossible_recipes_stop_at_validation(changes: dict[str, Any], words: str) -> None:
    config = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    config["dpo_recipes"]["openrlhf_llama"] = paper(**changes)
    with pytest.raises(ConfigError) as error:
        load_study(config)
    assert "dpo_recipes.openrlhf_llama" in str(error.value)
    assert words in str(error.value)


def test_a_recipe_survives_the_way_through_the_workflow() -> None:
    """As plain values, in which every default stands."""
    recipe = DPORecipe(**paper())
    assert DPORecipe(**recipe.model_dump(mode="json")) == recipe
    assert not recipe.sort_in_step


def test_batches_and_paths_that_openrlhf_would_misread(dpo_job: DPOJob) -> None:
    with pytest.raises(InputError, match="global_batch 8 is no multiple of micro_batch 1 x 3"):
        arguments(dpo_job, dpo_job.recipe, 3)
    with pytest.raises(InputError, match="splits paths"):
        arguments(dpo_job.model_copy(update={"shards": Path("a,b")}), dpo_job.recipe, 1)
    whole = dpo_job.recipe.model_copy(update={"global_batch": 64})
    with pytest.raises(InputError, match="make no step of 64"):
        openrlhf.count_pairs(dpo_job.shards, whole, 1)
