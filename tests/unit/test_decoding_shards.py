"""A run that keeps its finished batches: killed, resumed, read back, refused to another run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedModel

import two_models as two_models_script
from shallow_signals.decoding import Generation, generate, mixing, policy
from shallow_signals.files import InputError
from two_models import long_run, reading, some_prompts, two_models

Models = tuple[PreTrainedModel, PreTrainedModel]
END = range(10, 60)


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return two_models("llama3", tmp_path_factory.mktemp("models"))


def test_killed_and_run_again_gives_the_same_bytes(tmp_path: Path) -> None:
    def shards(name: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / name).glob("[!.]*")}

    arguments = [two_models_script.__file__, str(tmp_path / "models"), str(tmp_path / "broken")]
    path = os.pathsep.join(sys.path)
    process = subprocess.Popen([sys.executable, *arguments], env={**os.environ, "PYTHONPATH": path})
    while len(shards("broken")) < 4 and process.poll() is None:  # the plan and three of the batches
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 4 <= len(shards("broken")) < 13
    long_run(tmp_path / "models", tmp_path / "broken")
    long_run(tmp_path / "models", tmp_path / "whole")
    assert len(shards("whole")) == 13
    assert shards("broken") == shards("whole")
    assert not [path for path in (tmp_path / "broken").iterdir() if path.name.startswith(".")]


def test_a_state_is_read_back_and_that_of_another_run_refused(llamas: Models, tmp_path: Path) -> None:
    def run(seed: int = 0, **options: bool) -> list[Generation]:
        return generate(
            *llamas, some_prompts(3), [mixing(0.5), policy()], max_new_tokens=6, end_ids=END, seed=seed, batch_size=4,
            state=tmp_path / "state", **options,
        )  # fmt: skip

    first = run()
    with reading(llamas[0]) as shapes:
        second = run()
    assert shapes == []
    for one, two in zip(first, second, strict=True):
        for name, value in vars(one).items():
            np.testing.assert_array_equal(value, vars(two)[name])
            assert getattr(value, "dtype", None) == getattr(vars(two)[name], "dtype", None)
    for wrong in ({"seed": 1}, {"kl": False}):
        with pytest.raises(InputError, match="another run"):
            run(**wrong)  # type: ignore[arg-type]


def test_progress_tells_tokens_per_second(llamas: Models, capsys: pytest.CaptureFixture[str]) -> None:
    generate(*llamas, some_prompts(3), [policy()], max_new_tokens=4, end_ids=[], seed=0, progress=True)
    shown = capsys.readouterr().err
    assert "3/3" in shown and "tokens/s" in shown
