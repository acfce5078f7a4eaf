"""Converters against real rows whose answer is known from elsewhere."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from shallow_signals.config.sources import Columns, HubSource
from shallow_signals.data.convert import columns_converter, convert, hub_converter, message_lists, offline_converter
from shallow_signals.data.quarantine import FILTERS, Filtered, Rejected, check
from shallow_signals.files import InputError

SHP_COLUMNS = ["history", "human_ref_A", "human_ref_B", "labels", "post_id"]


def read(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    return [json.loads(line) for line in (gzip.decompress(data) if path.suffix == ".gz" else data).split(b"\n") if line]


def only(outcomes: list[Any]) -> Any:
    assert len(outcomes) == 1
    return outcomes[0]


def source(converter: str, **keys: Any) -> HubSource:
    return HubSource(repo="org/set", converter=converter, **keys)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


# Anthropic/hh-rlhf: the file holds the raw strings and, made by somebody else, the parsed conversation.


def test_hh_strings_give_the_parsed_conversations_of_the_file(shared_data: Path) -> None:
    rows = read(shared_data / "hh_rlhf_harmless_test.jsonl.gz")
    converter = hub_converter(source("hh_rlhf"), ["chosen", "rejected"])
    differing = 0
    for row in rows:
        raw = {"chosen": row["raw_chosen"], "rejected": row["raw_rejected"]}
        result = only(convert(converter, raw))
        if "prefix_differs" in row["flags"]:  # the file keeps the chosen side's prompt there
            assert result.reason == "prompts_differ"
            differing += 1
            continue
        assert [result[key] for key in ("prompt", "chosen", "rejected")] == [
            row[key] for key in ("prompt", "chosen", "rejected")
        ]
    assert (len(rows), differing) == (2312, 5)


def test_hh_rows_that_no_template_renders(shared_data: Path) -> None:
    """The file's own flags say which rows are empty or out of turn."""
    rows = read(shared_data / "hh_rlhf_harmless_test.jsonl.gz")
    converter = hub_converter(source("hh_rlhf"), ["chosen", "rejected"])
    for row in rows:
        result = only(convert(converter, {"chosen": row["raw_chosen"], "rejected": row["raw_rejected"]}))
        problem = result if isinstance(result, Rejected) else check(result)
        expected = {
            "prefix_differs": "prompts_differ",
            "non_alternating": "roles_do_not_alternate",
            "empty": "empty_chosen",
        }
        reasons = [reason for flag, reason in expected.items() if flag in row["flags"]]
        assert (problem.reason if problem else None) == (reasons[0] if reasons else None)


def test_an_offline_file_of_hh_is_parsed_where_it_is_raw(shared_data: Path) -> None:
    row = read(shared_data / "hh_rlhf_harmless_test.jsonl.gz")[0]
    raw = offline_converter(source("hh_rlhf"), Columns(chosen="raw_chosen", rejected="raw_rejected"))
    parsed = offline_converter(source("hh_rlhf"), Columns())
    one, other = only(convert(raw, row)), only(convert(parsed, row))
    assert [one[key] for key in ("prompt", "chosen", "rejected")] == [
        other[key] for key in ("prompt", "chosen", "rejected")
    ]


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ("no markers at all", "unparsable"),
        ("before\n\nHuman: q\n\nAssistant: a", "unparsable"),
        ("\n\nHuman: q", "no_assistant_turn"),
        ("\n\nHuman: q\n\nAssistant: a\n\nHuman: and?", "no_assistant_turn"),
        ("\n\nHuman: another question\n\nAssistant: a", "prompts_differ"),
        (7, "wrong_type"),
        (None, "missing_field"),
    ],
)
def test_hh_strings_that_are_no_conversation(chosen: object, reason: str) -> None:
    converter = hub_converter(source("hh_rlhf"), ["chosen", "rejected"])
    result = only(convert(converter, {"chosen": chosen, "rejected": "\n\nHuman: q\n\nAssistant: b"}))
    assert result.reason == reason


# Message lists: HelpSteer2 as it is, UltraFeedback's texts and scores put in the hub's columns.


def test_helpsteer_message_lists(shared_data: Path) -> None:
    with gzip.open(shared_data / "hub_layouts" / "helpsteer2_message_lists.json.gz", "rt") as file:
        rows = json.load(file)
    assert len(rows) == 95
    for row in rows:
        pair = only(convert(message_lists, row))
        assert pair["prompt"] == [{"role": "user", "content": row["chosen"][0]["content"]}]
        assert (pair["chosen"], pair["rejected"]) == (row["chosen"][1]["content"], row["rejected"][1]["content"])
        assert pair["margin"] is None


def test_ultrafeedback_binarized_leaves_out_the_ties_that_the_data_is_known_to_have(shared_data: Path) -> None:
    rows = read(shared_data / "hub_layouts" / "ultrafeedback_binarized_flat.jsonl.gz")
    reasons: Counter[str] = Counter()
    for row in rows:
        lists = {side: [user(row["prompt"]), assistant(row[side])] for side in ("chosen", "rejected")}
        result = only(convert(message_lists, lists | row["metadata"]))
        if isinstance(result, Filtered):
            assert result.reason == "tie" and row["metadata"]["score_chosen"] == row["metadata"]["score_rejected"]
            reasons["tie"] += 1
            continue
        assert result["margin"] == row["metadata"]["score_chosen"] - row["metadata"]["score_rejected"] != 0
        problem = check(result)
        reasons[problem.reason if problem else "pair"] += 1
    assert reasons["tie"] == 111
    untied = [row for row in rows if len(set(row["metadata"].values())) == 2]
    assert reasons["equal_responses"] == sum(row["chosen"] == row["rejected"] for row in untied) == 3
    assert reasons["empty_rejected"] == sum(not row["rejected"].strip() for row in untied)
    assert reasons["empty_chosen"] == sum(not row["chosen"].strip() for row in untied)
    assert reasons.total() == len(rows) == 1000 and reasons["pair"] == 884


def test_a_system_turn_may_come_first() -> None:
    before = [{"role": "system", "content": "be brief"}, user("q")]
    pair = only(convert(message_lists, {"chosen": [*before, assistant("a")], "rejected": [*before, assistant("b")]}))
    assert pair["prompt"] == before and check(pair) is None


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ([], "no_assistant_turn"),
        ([user("q")], "no_assistant_turn"),
        ([user("other"), assistant("a")], "prompts_differ"),
        ([assistant("a")], "prompts_differ"),
        ([user("q"), {"role": "gpt", "content": "a"}], "unknown_role"),
        ([user("q"), {"role": "assistant"}], "missing_field"),
        ([user("q"), {"role": "assistant", "content": ["a"]}], "wrong_type"),
        ([user("q"), "a"], "wrong_type"),
        ("a", "wrong_type"),
    ],
)
def test_message_lists_that_are_no_pair(chosen: object, reason: str) -> None:
    result = only(convert(message_lists, {"chosen": chosen, "rejected": [user("q"), assistant("b")]}))
    assert result.reason == reason


@pytest.mark.parametrize("score", ["8.5", float("inf"), 10**400, [1], True])
def test_a_score_that_is_no_finite_number(score: object) -> None:
    lists = {side: [user("q"), assistant(side)] for side in ("chosen", "rejected")}
    assert only(convert(message_lists, lists | {"score_chosen": score, "score_rejected": 1.0})).reason == "wrong_type"


# SHP: its columns with texts of HH helpful, whose chosen answers another file names.


def test_shp_labels_point_at_the_answer_that_people_chose(shared_data: Path) -> None:
    rows = read(shared_data / "hub_layouts" / "shp_columns_hh_helpful.jsonl.gz")
    chosen_of = {}
    for row in read(shared_data / "hh_rlhf_helpful_test.jsonl.gz"):
        chosen_of[frozenset((row["chosen"].strip(), row["rejected"].strip()))] = row["chosen"].strip()
    converter = hub_converter(source("shp", min_score_ratio=1.0), SHP_COLUMNS)
    matched = agree = agree_flipped = 0
    for row in rows:
        key = frozenset((row["human_ref_A"].strip(), row["human_ref_B"].strip()))
        if key not in chosen_of or len(key) < 2:
            continue
        matched += 1
        agree += only(convert(converter, row))["chosen"].strip() == chosen_of[key]
        flipped = only(convert(converter, row | {"labels": 1 - row["labels"]}))
        agree_flipped += flipped["chosen"].strip() == chosen_of[key]
    assert matched > 500
    assert agree == matched
    assert agree_flipped == 0


def test_shp_keeps_rows_above_the_score_ratio(shared_data: Path) -> None:
    row = json.loads((shared_data / "hub_layouts" / "shp_one_full_row.json").read_text())
    row = row[0] if isinstance(row, list) else row
    pair = only(convert(hub_converter(source("shp"), list(row)), row))
    assert row["labels"] == 1 and row["score_A"] > row["score_B"]
    assert (pair["chosen"], pair["rejected"]) == (row["human_ref_A"], row["human_ref_B"])
    assert pair["prompt"] == [user(row["history"])] and pair["cluster"] == row["post_id"]
    assert only(convert(hub_converter(source("shp", min_score_ratio=2.5), list(row)), row)) == Filtered("score_ratio")
    exactly = row | {"score_ratio": 2.0}
    assert only(convert(hub_converter(source("shp"), list(row)), exactly)) == Filtered("score_ratio")
    assert only(convert(hub_converter(source("shp"), list(row)), row | {"score_ratio": None})).reason == "missing_field"
    assert only(convert(hub_converter(source("shp"), list(row)), row | {"labels": 2})).reason == "wrong_type"


def test_shp_without_score_ratio_is_refused() -> None:
    with pytest.raises(InputError, match=r"no column 'score_ratio'.*set it to 1\.0"):
        hub_converter(source("shp"), SHP_COLUMNS)


# openbmb/UltraFeedback: every two completions with different ratings.


def completions(*ratings: object) -> list[dict[str, Any]]:
    return [
        {"response": f"answer {number}", "annotations": {"honesty": {"Rating": rating}, "helpfulness": {"Rating": "3"}}}
        for number, rating in enumerate(ratings)
    ]


@pytest.mark.parametrize(
    "ratings", [("4", "5", "4", "1"), ("3", "3", "3", "3"), ("N/A", "2", "N/A", "5"), ("5", "10", "2", "1")]
)
def test_aspect_pairs_are_those_of_a_brute_force(ratings: tuple[str, ...]) -> None:
    converter = hub_converter(source("ultrafeedback_aspects", aspect="honesty"), ["instruction", "completions"])
    outcomes = convert(converter, {"instruction": "q", "completions": completions(*ratings)})
    found = {(o["chosen"], o["rejected"], o["margin"]) for o in outcomes if isinstance(o, dict)}
    expected = {
        (f"answer {i}", f"answer {j}", float(ratings[i]) - float(ratings[j]))
        for i, j in permutations(range(4), 2)
        if "N/A" not in (ratings[i], ratings[j]) and int(ratings[i]) > int(ratings[j])
    }
    assert found == expected
    unrated = ratings.count("N/A")
    assert len(outcomes) == 6
    assert outcomes.count(Filtered("not_rated")) == 6 - (4 - unrated) * (3 - unrated) // 2
    assert all(o["aspect"] == "honesty" and o["prompt"] == [user("q")] for o in outcomes if isinstance(o, dict))


def test_aspect_rows_that_are_damaged() -> None:
    converter = hub_converter(source("ultrafeedback_aspects", aspect="honesty"), ["instruction", "completions"])

    def reasons(value: object) -> list[str]:
        row = {"instruction": "q", "completions": value}
        return [o.reason for o in convert(converter, row) if isinstance(o, Rejected)]

    assert reasons(None) == ["missing_field"]
    assert reasons([]) == ["missing_field"]
    assert reasons("text") == ["wrong_type"]
    assert reasons([*completions("1", "2"), "text"]) == ["wrong_type"] * 2  # one pair is left
    assert reasons(completions("good", "2")) == ["wrong_type"]
    assert reasons(completions(3, "2")) == ["wrong_type"]
    assert reasons([{"response": "a"}, *completions("1")]) == ["missing_field"]
    with pytest.raises(InputError, match="'aspect'"):
        hub_converter(source("ultrafeedback_aspects"), ["instruction", "completions"])


# RewardBench and plain columns.


def test_rewardbench_rows(shared_data: Path) -> None:
    rows = read(shared_data / "hub_layouts" / "rewardbench_rows.jsonl")
    converter = hub_converter(source("rewardbench"), list(rows[0]))
    for row in rows:
        pair = only(convert(converter, row))
        assert pair["prompt"] == [user(row["prompt"])] and check(pair) is None
        assert [pair[key] for key in ("chosen", "rejected", "subset")] == [
            row[key] for key in ("chosen", "rejected", "subset")
        ]


def test_columns_take_strings_and_message_lists() -> None:
    mapping = Columns(prompt="q", chosen="good", rejected="bad", cluster="topic", margin="gap", split="part")
    converter = columns_converter(mapping)
    plain = {"q": "why?", "good": "a", "bad": "b", "topic": 7, "gap": 2, "part": "test"}
    lists = plain | {"q": [user("why?")], "good": [user("why?"), assistant("a")], "bad": [assistant("b")]}
    one, other = only(convert(converter, plain)), only(convert(converter, lists))
    assert one == other
    assert (one["prompt"], one["cluster"], one["margin"], one["split"]) == ([user("why?")], "7", 2.0, "test")
    differing = lists | {"good": [user("how?"), assistant("a")]}
    assert only(convert(converter, differing)).reason == "prompts_differ"
    assert only(convert(converter, plain | {"part": "dev"})).reason == "wrong_type"
    assert only(convert(converter, plain | {"topic": 1.5})).reason == "wrong_type"
    assert only(convert(converter, plain | {"gap": float("nan")}))["margin"] is None


def test_a_missing_column_is_named_with_those_that_are_there() -> None:
    with pytest.raises(InputError, match="needs the column 'subset'; the data has: 'chosen', 'prompt', 'rejected'"):
        hub_converter(source("rewardbench"), ["prompt", "chosen", "rejected"])


def test_every_filter_is_explained() -> None:
    assert {"tie", "not_rated", "score_ratio", "keep_where", "pairs_per_post"} == set(FILTERS)
