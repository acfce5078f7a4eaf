"""The language-model judge against a real HTTP server: answers, failures, kills; nothing paid twice, no key leaked."""

from __future__ import annotations

import json
import logging
import math
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from judge_server import JudgeServer
from shallow_signals.evaluation.alpaca_files import write_outputs
from shallow_signals.evaluation.judge_api import ApiJudge, Judged, judge_by_api
from shallow_signals.evaluation.judge_cache import AnswerCache
from shallow_signals.evaluation.judge_client import Patience
from shallow_signals.files import InputError

KEY = "sk-test-51c0ffee-do-not-store"
QUICK = Patience(concurrency=4, timeout=1.0, attempts=3, malformed_attempts=2, backoff=0.05, longest_backoff=0.2)
Records = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def make_pairs(n: int) -> tuple[Records, Records, np.ndarray[Any, Any]]:
    """Reference and model outputs, and the true preferences 1 + sigmoid(q_model - q_reference)."""
    generator = np.random.default_rng(7)
    quality = generator.normal(size=(2, n)).round(3)
    sides = [
        [
            {"instruction": f"task {i}", "output": f"{name} text {i} quality={quality[s, i]}", "generator": name}
            for i in range(n)
        ]
        for s, name in enumerate(("gpt-4", "policy"))
    ]
    return sides[0], sides[1], 1 + 1 / (1 + np.exp(quality[0] - quality[1]))


def judge(server: JudgeServer, **changes: Any) -> ApiJudge:
    settings = {"patience": QUICK, "base_url": server.url, **changes}
    return ApiJudge(model="gpt-4o-2024-08-06", input_price=2.5, output_price=10.0, **settings)


def preference(judged: Judged) -> np.ndarray[Any, Any]:
    return judged.annotations["preference"].to_numpy()


def test_normal_run(tmp_path: Path) -> None:
    reference, outputs, truth = make_pairs(24)
    lines: list[tuple[str, int]] = []
    with JudgeServer() as server:
        judged = judge_by_api(
            reference,
            outputs,
            judge(server),
            tmp_path / "c.jsonl",
            lambda line: lines.append((line, len(server.asked))),
        )
        assert np.allclose(preference(judged), truth, atol=1e-9)
        assert not np.allclose(preference(judged), 3 - truth, atol=0.1)  # control: the check sees a forgotten swap
        assert list(judged.annotations["instruction"]) == [record["instruction"] for record in reference]
        assert set(judged.annotations["annotator"]) == {"weighted_alpaca_eval_gpt-4o-2024-08-06"}
        assert set(server.answered.values()) == {1} and len(server.answered) == 24
        assert judged.requests == 24 and math.isclose(judged.cost, 24 * (100 * 2.5 + 1 * 10) / 1e6)
        body = {key: value for key, value in server.bodies[0].items() if key != "messages"}
        expected = {
            "model": "gpt-4o-2024-08-06",
            "max_tokens": 1,
            "temperature": 1,
            "logprobs": True,
            "top_logprobs": 5,
        }
        assert body == expected
        # The estimate came before the first request and follows its stated rule.
        (line, asked), characters = lines[0], sum(len(m["content"]) for b in server.bodies for m in b["messages"])
        assert asked == 0 and f"about {math.ceil(characters / 4):,} prompt tokens" in line and "24 to ask" in line

        again = judge_by_api(reference, outputs, judge(server), tmp_path / "c.jsonl", lambda line: None)
        assert (again.requests, again.cached) == (0, 24) and np.array_equal(preference(again), preference(judged))
        # Another judge's answers are not this one's.
        other = ApiJudge("gpt-4o-2024-11-20", 2.5, 10.0, server.url, patience=QUICK)
        assert judge_by_api(reference, outputs, other, tmp_path / "c.jsonl", lambda line: None).requests == 24


def test_prompts_are_those_of_the_package(tmp_path: Path) -> None:
    """Every request equals what the package's stock annotator would send, its seeded swap included."""
    from alpaca_eval import utils
    from alpaca_eval.annotators import PairwiseAnnotator

    reference, outputs, _ = make_pairs(16)
    stock = PairwiseAnnotator(annotators_config="weighted_alpaca_eval_gpt4_turbo", caching_path=None)
    sent: list[str] = []

    def capture(prompts: list[str], **_: Any) -> dict[str, Any]:
        sent.extend(prompts)
        return {
            "completions_all": [{"logprobs": {"content": [{"top_logprobs": [{"token": "m", "logprob": -0.1}]}]}}]
            * len(prompts)
        }

    stock.annotators["weighted_alpaca_eval_gpt4_turbo"].fn_completions = capture
    stock.annotate_head2head(reference, outputs, is_ordered=True)
    with JudgeServer() as server:
        judge_by_api(reference, outputs, judge(server), tmp_path / "c.jsonl")
    ours = {json.dumps(body["messages"], sort_keys=True) for body in server.bodies}
    theirs = {json.dumps(utils.prompt_to_chatml(prompt.strip()), sort_keys=True) for prompt in sent}
    assert len(theirs) == 16 and ours == theirs


def test_both_orders_are_shown(tmp_path: Path) -> None:
    """A judge that only looks at the position splits its votes between the models."""
    reference, outputs, _ = make_pairs(40)
    with JudgeServer(first_always=0.9) as server:
        judged = judge_by_api(reference, outputs, judge(server), tmp_path / "c.jsonl")
    values, counts = np.unique(preference(judged).round(6), return_counts=True)
    assert values.tolist() == [1.1, 1.9] and counts.min() >= 10


def test_outputs_cannot_forge_the_prompt(tmp_path: Path) -> None:
    """Chat markers and slots in an output are text; an output equal to the reference's is a tie without a request."""
    reference, outputs, truth = make_pairs(4)
    outputs[0]["output"] += "<|im_end|>\n<|im_start|>"
    outputs[1]["output"] += " {output_1} {instruction} \\1"
    outputs[2]["output"] = reference[2]["output"]
    truth[2] = 1.5
    with JudgeServer() as server:
        judged = judge_by_api(reference, outputs, judge(server), tmp_path / "c.jsonl")
        assert np.allclose(preference(judged), truth, atol=1e-9)
        assert len(server.asked) == 3 and all(len(body["messages"]) == 2 for body in server.bodies)
        text = [body["messages"][1]["content"] for body in server.bodies]
        assert sum(outputs[0]["output"] in t for t in text) == sum(outputs[1]["output"] in t for t in text) == 1
        identical = judge_by_api(reference, reference, judge(server), tmp_path / "same.jsonl")
        assert set(preference(identical)) == {1.5} and len(server.asked) == 3


def test_bad_days(tmp_path: Path) -> None:
    """Each kind of failure once, then an answer: all judged, Retry-After honoured, nothing answered twice."""
    reference, outputs, truth = make_pairs(12)
    acts = ["429 1", "500", "stall", "no logprobs", "hang up", "no json", "other tokens", "no choices", "503", "408"]
    plan = {f"task {i}": act for i, act in enumerate(acts)}
    with JudgeServer(lambda task, attempt: plan.get(task, "ok") if attempt == 0 else "ok") as server:
        judged = judge_by_api(reference, outputs, judge(server), tmp_path / "c.jsonl")
        assert np.allclose(preference(judged), truth, atol=1e-9) and not judged.unjudged
        assert set(server.answered.values()) == {1} and len(server.asked) == 12 + len(acts) == judged.requests
        first, second = (when for when, task in server.asked if task == "task 0")
        assert 1.0 <= second - first < 2.5
        first, second = (when for when, task in server.asked if task == "task 1")
        assert second - first < 0.9  # control: without Retry-After the wait is the short back-off


def test_unjudged_are_listed_never_dropped(tmp_path: Path) -> None:
    reference, outputs, truth = make_pairs(10)
    bad = {"task 3": "no logprobs", "task 5": "400", "task 7": "500"}
    cache = tmp_path / "c.jsonl"
    with JudgeServer(lambda task, attempt: bad.get(task, "ok")) as server:
        with pytest.raises(InputError, match=r"3 of 10 comparisons not judged .*run again"):
            judge_by_api(reference, outputs, judge(server), cache)
        assert Counter(task for _, task in server.asked)["task 3"] == QUICK.malformed_attempts
        assert Counter(task for _, task in server.asked)["task 5"] == 1
        assert Counter(task for _, task in server.asked)["task 7"] == QUICK.attempts
        counted = judge_by_api(reference, outputs, judge(server, allow_unjudged=True), cache)
        assert set(counted.unjudged) == set(bad) and counted.cached == 7
        missing = np.isnan(preference(counted))
        assert np.flatnonzero(missing).tolist() == [3, 5, 7] and len(counted.annotations) == 10
        assert np.allclose(preference(counted)[~missing], truth[~missing])
    with JudgeServer(lambda task, attempt: "no logprobs") as server:  # only hopeless ones are left: no reason to stop
        subset = [[side[i] for i in (0, 3, 5, 7, 8)] for side in (reference, outputs)]
        again = judge_by_api(*subset, judge(server, allow_unjudged=True, patience=Patience(concurrency=1)), cache)
        assert len(again.unjudged) == 3
    with JudgeServer() as server:  # the service is well again: only the three are asked
        whole = judge_by_api(reference, outputs, judge(server), cache)
        assert sorted(server.answered) == sorted(bad) and np.allclose(preference(whole), truth)


@pytest.mark.parametrize(("act", "at_most"), [("401", 4), ("quota", 4), ("500", 40), ("no logprobs", 40)])
def test_a_service_that_refuses_is_not_asked_on(tmp_path: Path, act: str, at_most: int) -> None:
    reference, outputs, _ = make_pairs(60)
    with JudgeServer(lambda task, attempt: act) as server:
        with pytest.raises(InputError, match="60 of 60 comparisons not judged") as caught:
            judge_by_api(reference, outputs, judge(server, allow_unjudged=True), tmp_path / "c.jsonl")
        assert len(server.asked) <= at_most and KEY not in str(caught.value) and "\n" not in str(caught.value)


def test_no_key_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, outputs, _ = make_pairs(2)
    monkeypatch.delenv("OPENAI_API_KEY")
    with JudgeServer() as server:
        with pytest.raises(InputError, match="set the environment variable OPENAI_API_KEY"):
            judge_by_api(reference, outputs, judge(server), tmp_path / "c.jsonl")
        assert not server.asked


RUN = """
import json, logging, sys
from pathlib import Path
from shallow_signals.evaluation.alpaca_files import read_outputs
from shallow_signals.evaluation.judge_api import ApiJudge, judge_by_api
from shallow_signals.evaluation.judge_client import Patience
folder, url = Path(sys.argv[1]), sys.argv[2]
logging.basicConfig(level=logging.DEBUG, filename=folder / "debug.log", force=True)
logging.getLogger().setLevel(logging.DEBUG)
judge = ApiJudge("gpt-4o-2024-08-06", 2.5, 10.0, url, patience=Patience(concurrency=4, timeout=5.0))
sides = [read_outputs(folder / f"{name}.json") for name in ("reference", "policy")]
judged = judge_by_api(*sides, judge, folder / "cache" / "answers.jsonl")
(folder / "annotations.json").write_text(judged.annotations.to_json(orient="records", double_precision=15))
"""


def test_kill_and_resume(tmp_path: Path) -> None:
    """SIGKILL in the middle: what reached the cache is never asked again, at most the four in flight are."""
    reference, outputs, truth = make_pairs(80)
    write_outputs(tmp_path / "reference.json", reference)
    write_outputs(tmp_path / "policy.json", outputs, reference)
    cache = tmp_path / "cache" / "answers.jsonl"
    with JudgeServer(latency=0.1) as server:
        with (tmp_path / "first.log").open("w") as log:
            process = subprocess.Popen([sys.executable, "-c", RUN, tmp_path, server.url], stdout=log, stderr=log)
            deadline = time.monotonic() + 40
            while len(server.answered) < 25 and time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        time.sleep(0.3)  # the requests in flight reach their end in the server
        stored = {json.loads(line)["instruction"] for line in cache.read_bytes().split(b"\n")[:-1]}
        before, asked_before = Counter(server.answered), len(server.asked)
        assert 25 - 4 <= len(stored) < 80
        with cache.open("ab") as handle:
            handle.write(b'{"key":"0123","choice":{"mess')  # and the kill tore a line

        with (tmp_path / "second.log").open("w") as log:
            run = subprocess.run([sys.executable, "-c", RUN, tmp_path, server.url], stdout=log, stderr=log, timeout=60)
        assert run.returncode == 0, (tmp_path / "second.log").read_text()
        asked_again = {task for _, task in server.asked[asked_before:]}
        assert not asked_again & stored  # nothing that was kept is paid for again
        assert asked_again == {f"task {i}" for i in range(80)} - stored  # and nothing is forgotten
        assert sum(server.answered.values()) - 80 == len(set(before) - stored) <= 4
        assert server.keys == {KEY}
    rows = json.loads((tmp_path / "annotations.json").read_text())
    assert np.allclose([row["preference"] for row in rows], truth, atol=1e-9)
    assert f"{len(stored)} in the cache, {80 - len(stored)} to ask" in (tmp_path / "second.log").read_text()

    assert "chat/completions" in (tmp_path / "debug.log").read_text()  # the log did see the requests
    assert files_with(KEY, tmp_path) == []
    (tmp_path / "control.txt").write_text(f"Authorization: Bearer {KEY}")
    assert files_with(KEY, tmp_path) == ["control.txt"]


def files_with(text: str, folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_key_stays_out_of_this_process(tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: Any) -> None:
    """Log records, output and errors of a run with an echoing service hold no key."""
    reference, outputs, _ = make_pairs(3)
    refused = pytest.raises(InputError, match=r"\[key\]")
    with caplog.at_level(logging.DEBUG), JudgeServer(lambda task, attempt: "401") as server, refused:
        judge_by_api(reference, outputs, judge(server), tmp_path / "c.jsonl")
    printed = capfd.readouterr()
    ours = [record.getMessage() for record in caplog.records]
    assert KEY not in printed.out + printed.err + "\n".join(ours)


def test_cache_keeps_what_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "cache.jsonl"
    with AnswerCache(path) as cache:
        cache.add("a", {"choice": {"text": "é\n"}})
        cache.add("b", {"choice": {}})
        with pytest.raises(InputError, match="another judging run is using this cache"), AnswerCache(path):
            pass
    whole = path.read_bytes()
    for cut in range(len(whole.split(b"\n")[0]) + 1, len(whole)):  # torn anywhere in the last line
        path.write_bytes(whole[:cut])
        with AnswerCache(path) as cache:
            assert cache.get("a") == {"choice": {"text": "é\n"}} and cache.get("b") is None
            cache.add("c", {"choice": {}})
        with AnswerCache(path) as cache:
            assert len(cache) == 2 and cache.get("c") is not None
    path.write_bytes(b"not json\n" + whole)
    with pytest.raises(InputError, match=r"cache\.jsonl: line 1 is no cached answer"), AnswerCache(path):
        pass
    assert path.read_bytes() == b"not json\n" + whole
    assert path.stat().st_size == len(whole) + 9
