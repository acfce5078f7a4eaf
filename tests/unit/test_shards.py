"""Shards of real pairs: what is kept, what is counted, and who can read it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

import checkpoints
from realdata import ARGUMENTS, HARMLESS, RMB, pair_row, pairs_table, real_pairs, smollm2
from shallow_signals.config.truncation import parse
from shallow_signals.data.shards import SHARDS, write_shards
from shallow_signals.files import InputError
from shallow_signals.models.tokens import tokenize_pairs
from shallow_signals.provenance import content_hash

SIDES = ("chosen", "rejected")
USER = {"role": "user", "content": "Hello"}
CLOSING = [2, 198]  # SmolLM2's


class Data:
    """Pairs and their tokens on disk, and shards made of them."""

    def __init__(self, folder: Path, pairs: pa.Table, tokenizer: Any) -> None:
        self.folder, self.tokenizer = folder, tokenizer
        self.pairs, self.tokens = folder / "pairs.parquet", folder / "tokens.parquet"
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(pairs, self.pairs)
        pq.write_table(tokenize_pairs(pairs, tokenizer, "auto")[0], self.tokens)
        self.rows = {row["pair_id"]: row for row in pq.read_table(self.tokens).to_pylist()}

    def retokenize(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        return ids

    def write(self, name: str, **options: Any) -> dict[str, Any]:
        return write_shards(self.tokens, self.pairs, parse(name), self.folder / name, self.retokenize, **options)

    def shards(self, name: str, split: str) -> list[dict[str, Any]]:
        files = sorted((self.folder / name).glob(f"{split}-*.parquet"))
        return [row for file in files for row in pq.read_table(file).to_pylist()]


@pytest.fixture(scope="module")
def real(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Data]:
    folder = tmp_path_factory.mktemp("real")
    made: dict[str, Data] = {}

    def load(file: str) -> Data:
        if file not in made:
            made[file] = Data(folder / file, real_pairs(shared_data, file, 150), smollm2())
        return made[file]

    return load


def response(row: dict[str, Any], side: str) -> str:
    """The text that a row's message list ends in."""
    text: str = row[side][-1]["content"]
    return text


@pytest.mark.parametrize("file", [HARMLESS, ARGUMENTS, RMB])
@pytest.mark.parametrize("name", ["head50", "tail50", "window50"])
def test_cuts_of_real_text(real: Callable[[str], Data], file: str, name: str) -> None:
    data = real(file)
    manifest = data.write(name)
    cut = differ = 0
    for split in ("train", "test"):
        rows, summary = data.shards(name, split), manifest["splits"][split]
        assert summary["pairs"] == sum(row["split"] == split for row in data.rows.values())
        assert summary["written"] == len(rows) == summary["pairs"] - summary["collapsed"]
        kept = full = 0
        for row in rows:
            source = data.rows[row["pair_id"]]
            assert source["split"] == split
            assert row["prompt_tokens"] == source["prompt_ids"]
            for side in SIDES:
                text, ids, whole = response(row, side), row[f"{side}_tokens"], source[side]
                # Exactly the kept tokens' text (decoding shows a broken character as U+FFFD), at the right end.
                assert data.tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
                assert text in whole
                assert name != "head50" or whole.startswith(text)
                assert name != "tail50" or whole.endswith(text)
                length, total = row[f"{side}_length"], row[f"{side}_full_length"]
                assert (length, total) == (len(ids), len(source[f"{side}_ids"]))
                assert max(1, total // 2) - 6 <= length <= max(4, total // 2)
                kept, full = kept + length, full + total
                if length < total:
                    cut += 1
                    differ += data.retokenize([text])[0] != ids
        assert (summary["kept_tokens"], summary["full_tokens"]) == (kept, full)
    counted = [sum(manifest["splits"][s][key] for s in ("train", "test")) for key in COUNTED]
    assert counted == [cut, differ]
    assert json.loads((data.folder / name / "manifest.json").read_text()) == manifest
    assert (manifest["closing_ids"], manifest["strips"]) == (CLOSING, False)


COUNTED = ("responses_cut", "retokenized_differently")


@pytest.mark.parametrize("file", [HARMLESS, ARGUMENTS, RMB])
def test_cut_text_is_tokenised_as_it_was(shared_data: Path, tmp_path: Path, file: str) -> None:
    # All of RMB: 1.17% of 29,000 cuts. 2,400 of them tell that from the bar of 2%, a few hundred don't.
    data = Data(tmp_path, real_pairs(shared_data, file, 1200), smollm2())
    splits = data.write("head50")["splits"]
    cut, differ = (sum(splits[split][key] for split in ("train", "test")) for key in COUNTED)
    assert cut > 2300
    assert differ <= 0.02 * cut


def test_other_ids_are_noticed(real: Callable[[str], Data], tmp_path: Path) -> None:
    data = real(HARMLESS)
    out = tmp_path / "out"
    manifest = write_shards(data.tokens, data.pairs, parse("head50"), out, lambda texts: [[0] for _ in texts])
    cut, differ = (manifest["splits"]["train"][key] for key in COUNTED)
    assert differ == cut > 100


def test_a_cut_inside_a_character_is_moved_and_counted(tmp_path: Path) -> None:
    emoji = "🦜🦜🦜🦜"  # rare enough to be several tokens each
    data = Data(tmp_path, pairs_table([pair_row([USER], emoji, "plain words only", "train")]), smollm2())
    tokens = len(data.rows.popitem()[1]["chosen_ids"])
    assert tokens % 4 == 0 and tokens >= 8
    name = f"head{tokens // 2 + 1}tok"
    assert data.write(name)["splits"]["train"]["moved_for_a_character"] == 1
    assert response(data.shards(name, "train")[0], "chosen") == "🦜🦜"
    assert data.write("head50")["splits"]["train"]["moved_for_a_character"] == 0


def test_100_percent_is_full(real: Callable[[str], Data]) -> None:
    data = real(RMB)
    summaries = [data.write(name)["splits"] for name in ("full", "head100", "tail100", "head100-char")]
    assert all(summary == summaries[0] for summary in summaries)
    hashes = {content_hash(next((data.folder / name).glob("train-*"))) for name in ("full", "head100", "tail100")}
    assert len(hashes) == 1
    for row in data.shards("full", "train"):
        assert response(row, "chosen") == data.rows[row["pair_id"]]["chosen"]


def test_prompts_and_columns(real: Callable[[str], Data]) -> None:
    data = real(HARMLESS)
    data.write("head50")
    prompts = {row["pair_id"]: row["prompt"] for row in pq.read_table(data.pairs).to_pylist()}
    file = next((data.folder / "head50").glob("train-*"))
    assert pq.read_schema(file).equals(SHARDS)
    assert len({len(prompt) for prompt in prompts.values()}) > 2  # of several lengths
    for row in data.shards("head50", "train"):
        for side in SIDES:
            assert row[side][:-1] == prompts[row["pair_id"]]
            assert row[side][-1]["role"] == "assistant"


def test_characters(real: Callable[[str], Data]) -> None:
    data = real(RMB)
    data.write("head50-char")
    data.write("head20chars")
    for row in data.shards("head50-char", "train"):
        text, whole = response(row, "chosen"), data.rows[row["pair_id"]]["chosen"]
        assert text == whole[: max(1, len(whole) // 2)]
        assert row["chosen_tokens"] == data.retokenize([text])[0]
    for row in data.shards("head20chars", "test"):
        assert response(row, "rejected") == data.rows[row["pair_id"]]["rejected"][:20]


def test_min_length_makes_equal_lengths(real: Callable[[str], Data]) -> None:
    data = real(RMB)
    moved = data.write("min_length")["splits"]["train"]["moved_for_a_character"]
    rows = data.shards("min_length", "train")
    unequal = [row for row in rows if row["chosen_length"] != row["rejected_length"]]
    assert len(unequal) <= moved < len(rows) / 10
    assert sum(row["chosen_full_length"] != row["rejected_full_length"] for row in rows) > len(rows) / 2
    for row in rows:
        shorter = min(row["chosen_full_length"], row["rejected_full_length"])
        assert shorter in (row["chosen_length"], row["rejected_length"])


def test_collapsed_pairs_are_counted_and_left_out(tmp_path: Path) -> None:
    rows = [
        pair_row([USER], "one two three four", "one two three five", "train"),
        pair_row([USER], "one two three four", "six two three four", "train"),
        pair_row([USER], "one two one nine", "one two one seven", "test"),
    ]
    data = Data(tmp_path, pairs_table(rows), smollm2())
    splits = data.write("head50")["splits"]
    assert [splits[s]["collapsed"] for s in ("train", "test")] == [1, 1]
    assert [row["pair_id"] for row in data.shards("head50", "train")] == [rows[1]["pair_id"]]
    assert not list((tmp_path / "head50").glob("test-*"))
    assert data.write("full")["splits"]["train"]["collapsed"] == 0
    one = Data(tmp_path / "one", pairs_table(rows[:1]), smollm2())
    with pytest.raises(InputError, match=r"tokens\.parquet: .*'head50' no training pair is left"):
        one.write("head50")


def test_pairs50_has_the_training_tokens_of_head50(real: Callable[[str], Data]) -> None:
    data = real(HARMLESS)
    half, fewer, full = (data.write(name)["splits"] for name in ("head50", "pairs50", "full"))
    budget = half["train"]["kept_tokens"]
    longest = max(row["chosen_length"] + row["rejected_length"] for row in data.shards("full", "train"))
    assert budget - longest < fewer["train"]["kept_tokens"] <= budget
    assert fewer["train"]["kept_tokens"] == fewer["train"]["full_tokens"]
    assert 0.3 < fewer["train"]["written"] / full["train"]["written"] < 0.7
    assert data.shards("pairs50", "test") == data.shards("full", "test")
    whole = data.shards("full", "train")
    assert [row for row in data.shards("pairs50", "train") if row in whole] == data.shards("pairs50", "train")


def test_pairs50_does_not_depend_on_the_order_of_rows(real: Callable[[str], Data], tmp_path: Path) -> None:
    data = real(HARMLESS)
    data.write("pairs50")
    turned = pq.read_table(data.tokens).take(list(reversed(range(len(data.rows)))))
    pq.write_table(turned, tmp_path / "tokens.parquet")
    write_shards(tmp_path / "tokens.parquet", data.pairs, parse("pairs50"), tmp_path / "out", data.retokenize)
    rows = pq.read_table(next((tmp_path / "out").glob("train-*"))).to_pylist()
    assert rows == data.shards("pairs50", "train")[::-1]


def test_halves_share_no_prompt_and_miss_no_pair(real: Callable[[str], Data]) -> None:
    data = real(HARMLESS)
    manifests = [data.write(name)["splits"] for name in ("half1", "half2", "full")]
    first, second, full = (data.shards(name, "train") for name in ("half1", "half2", "full"))
    assert sorted([*first, *second], key=lambda row: row["pair_id"]) == sorted(full, key=lambda row: row["pair_id"])
    prompts = [{data.rows[row["pair_id"]]["prompt_id"] for row in rows} for rows in (first, second)]
    assert not prompts[0] & prompts[1]
    assert 0.3 < len(first) / len(full) < 0.7
    assert data.shards("half1", "test") == data.shards("half2", "test") == data.shards("full", "test")
    for splits, rows in zip(manifests, (first, second), strict=False):
        train = splits["train"]
        assert train["pairs"] == manifests[2]["train"]["pairs"]
        assert train["written"] + train["collapsed"] + train["other_half"] == train["pairs"]
        assert train["written"] == len(rows)


def test_shuffles_swap_half_of_the_training_pairs(real: Callable[[str], Data]) -> None:
    data = real(HARMLESS)
    flipped: dict[str, set[str]] = {}
    for name in ("shuffled1", "shuffled2", "full"):
        manifest = data.write(name)
        rows = data.shards(name, "train")
        flipped[name] = set()
        for row in rows:
            source = data.rows[row["pair_id"]]
            swap = response(row, "chosen") != source["chosen"]
            a, b = SIDES[::-1] if swap else SIDES
            assert (response(row, "chosen"), response(row, "rejected")) == (source[a], source[b])
            assert (row["chosen_tokens"], row["rejected_tokens"]) == (source[f"{a}_ids"], source[f"{b}_ids"])
            if swap:
                flipped[name].add(row["pair_id"])
        assert len(flipped[name]) == manifest["splits"]["train"].get("swapped", 0)
        for row in data.shards(name, "test"):  # labels of the test pairs stay true
            assert response(row, "chosen") == data.rows[row["pair_id"]]["chosen"]
    assert not flipped["full"]
    pairs = len(data.shards("full", "train"))
    for name in ("shuffled1", "shuffled2"):
        assert 0.35 * pairs < len(flipped[name]) < 0.65 * pairs
    assert 0.3 * pairs < len(flipped["shuffled1"] ^ flipped["shuffled2"]) < 0.7 * pairs


def test_cuts_that_a_template_would_strip_are_counted(tmp_path: Path) -> None:
    folder = checkpoints.gemma(tmp_path / "gemma")
    rows = [pair_row([USER], "a b", "c", "train"), pair_row([USER], "d  e", "fg", "train")]
    data = Data(tmp_path, pairs_table(rows), AutoTokenizer.from_pretrained(folder))
    assert data.write("head2chars")["splits"]["train"]["stripped_by_the_template"] == 2  # "a " and "d "
    assert data.write("head1chars")["splits"]["train"]["stripped_by_the_template"] == 0
    plain = Data(tmp_path / "plain", pairs_table(rows), smollm2())  # a template that keeps white space
    assert plain.write("head2chars")["splits"]["train"]["stripped_by_the_template"] == 0


def test_files_are_split_named_and_the_same_every_time(real: Callable[[str], Data]) -> None:
    data = real(HARMLESS)
    folder = data.folder / "head50"
    data.write("head50", rows_per_shard=50)
    first, rows = content_hash(folder), data.shards("head50", "train")
    names = sorted(path.name for path in folder.glob("train-*"))
    assert len(names) == -(-len(rows) // 50) > 1
    assert names == [f"train-{n:05d}-of-{len(names):05d}.parquet" for n in range(len(names))]
    data.write("head50")
    assert [path.name for path in folder.glob("train-*")] == ["train-00000-of-00001.parquet"]  # none left behind
    assert data.shards("head50", "train") == rows
    shutil.rmtree(folder)
    data.write("head50", rows_per_shard=50)
    assert content_hash(folder) == first


def test_what_is_refused(real: Callable[[str], Data], tmp_path: Path) -> None:
    data = real(HARMLESS)
    with pytest.raises(ValueError, match="scoring only"):
        data.write("topshare50")
    tokens = pq.read_table(data.tokens)
    pq.write_table(tokens.replace_schema_metadata(None), tmp_path / "bare.parquet")
    with pytest.raises(InputError, match=r"bare\.parquet: metadata 'closing_ids' is missing"):
        write_shards(tmp_path / "bare.parquet", data.pairs, parse("full"), tmp_path / "out", data.retokenize)
    pq.write_table(pq.read_table(data.pairs).slice(1), tmp_path / "pairs.parquet")
    with pytest.raises(InputError, match=r"pairs\.parquet: 1 pair_id"):
        write_shards(data.tokens, tmp_path / "pairs.parquet", parse("full"), tmp_path / "out", data.retokenize)


def test_datasets_and_trl_read_shards_as_they_are(real: Callable[[str], Data], tmp_path: Path) -> None:
    import datasets
    from trl import RewardConfig, RewardTrainer
    from trl.data_utils import extract_prompt, is_conversational

    data = real(HARMLESS)
    data.write("head50", rows_per_shard=60)
    pattern = {split: str(data.folder / "head50" / f"{split}-*.parquet") for split in ("train", "test")}
    loaded = datasets.load_dataset("parquet", data_files=pattern, cache_dir=str(tmp_path / "cache"))
    rows = data.shards("head50", "train")
    assert loaded["train"].num_rows == len(rows)
    assert loaded["test"].num_rows == len(data.shards("head50", "test"))
    by_folder = datasets.load_dataset(
        "parquet", data_dir=str(data.folder / "head50"), cache_dir=str(tmp_path / "cache")
    )
    assert {split: part.num_rows for split, part in by_folder.items()} == loaded.num_rows

    first = loaded["train"][0]
    assert is_conversational(first)
    prompt = extract_prompt({side: list(first[side]) for side in SIDES})
    assert prompt["chosen"] == [first["chosen"][-1]]
    assert prompt["prompt"] == first["chosen"][:-1]

    def prepared(table: Any) -> list[list[int]]:
        config = RewardConfig(output_dir=str(tmp_path / "trl"), max_length=None, use_cpu=True, bf16=False)
        ids = RewardTrainer._prepare_dataset(None, table, data.tokenizer, config, "train")["chosen_ids"]
        return [list(row) for row in ids]

    few = loaded["train"].select(range(40))
    expected = [row["prompt_tokens"] + row["chosen_tokens"] + CLOSING for row in rows[:40]]
    same = sum(a == b for a, b in zip(prepared(few), expected, strict=True))
    assert same >= 39  # a cut may be tokenised otherwise
    # With a column of this name the prompt would be there twice: why shards have none.
    doubled = few.add_column("prompt", [row[:-1] for row in few["chosen"]])
    assert sum(a == b for a, b in zip(prepared(doubled), expected, strict=True)) == 0
