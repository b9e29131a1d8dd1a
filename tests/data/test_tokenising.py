"""Shards and processes change neither rows nor their order, and what is done is not done again."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from gradfiltering.data import encoder as encoder_module
from gradfiltering.data import tokenising
from gradfiltering.data.encoder import Encoder
from gradfiltering.data.examples import hash_examples
from gradfiltering.data.tokenising import SHARDS_KIND, TokenisingSettings
from gradfiltering.errors import UserError
from gradfiltering.options import OptionsError
from gradfiltering.runs.cache import Cache
from tests.support.pipeline import ROOT

ROW_COUNT = 47
# Some rows have no answer, some are too long, some are there twice.
ROWS = [
    {
        "instruction": f"Say {n % 40}.",
        "input": "",
        "output": "" if n % 9 == 4 else f"{n % 40} " * (1 + 60 * (n % 7 == 3)),
    }
    for n in range(ROW_COUNT)
]
PAIRS = [{"prompt": f"Say {n}.", "chosen": f"it is {n}", "rejected": "no" if n % 5 else ""} for n in range(23)]


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(tokenising, "ROWS_PER_SHARD", 10)
    monkeypatch.setattr(tokenising, "ROWS_PER_BATCH", 4)


@pytest.fixture
def calls(monkeypatch) -> list[list[int]]:
    """Positions of the rows of each batch that is tokenised in this process."""
    made, encode_rows = [], encoder_module.encode_rows

    def counted(batch, indices, **options):
        made.append(indices)
        return encode_rows(batch, indices, **options)

    monkeypatch.setattr(encoder_module, "encode_rows", counted)
    return made


def outcome(examples) -> tuple:
    facts = (examples.truncated, examples.lost_tokens, examples.unscored, dict(examples.not_shown))
    return examples.table.to_list(), examples.lengths.tolist(), examples.example_ids.tolist(), facts


def stored_shards(cache: Cache) -> list[list[int]]:
    return sorted(key["shard"] for key in cache.list_keys(SHARDS_KIND))


@pytest.fixture(params=["json rows", "typed rows", "rows in another order", "preferences"])
def dataset(request, write_rows, file_source, make_records):
    if request.param == "preferences":
        return file_source(write_rows(PAIRS), schema="preference").load(0)
    if request.param == "typed rows":
        return make_records(ROWS)
    loaded = file_source(write_rows(ROWS)).load(0)
    if request.param == "json rows":
        return loaded
    return replace(loaded, rows=loaded.rows.select([*range(46, 20, -1), 3, 5]))


def test_rows_in_shards_are_as_in_one_piece(dataset, tokenizer, tmp_path, monkeypatch):
    in_one_piece = Encoder(tokenizer, 60, Cache(tmp_path / "one")).encode(dataset)
    monkeypatch.setattr(tokenising, "ROWS_PER_SHARD", 10)
    monkeypatch.setattr(tokenising, "ROWS_PER_BATCH", 4)
    cache = Cache(tmp_path / "shards")
    in_shards = Encoder(tokenizer, 60, cache).encode(dataset)
    assert outcome(in_shards) == outcome(in_one_piece)
    assert hash_examples(in_shards) == hash_examples(in_one_piece)
    assert len(in_one_piece.unscored) > 0
    assert cache.list_keys("tokens") == Cache(tmp_path / "one").list_keys("tokens")
    assert stored_shards(cache) == []


def test_processes_give_the_rows_of_one_process(small_shards, tokenizer, tmp_path, write_rows, file_source):
    dataset = file_source(write_rows(ROWS)).load(0)
    caches = {count: Cache(tmp_path / str(count)) for count in (1, 2)}
    alone = Encoder(tokenizer, 60, caches[1], TokenisingSettings(1)).encode(dataset)
    together = Encoder(tokenizer, 60, caches[2], TokenisingSettings(2)).encode(dataset)
    assert outcome(together) == outcome(alone) and hash_examples(together) == hash_examples(alone)
    assert caches[1].list_keys("tokens") == caches[2].list_keys("tokens")


def test_another_number_of_processes_takes_the_same_result(small_shards, calls, tokenizer, cache, make_records):
    Encoder(tokenizer, 512, cache, TokenisingSettings(1)).encode(make_records(ROWS))
    made = len(calls)
    Encoder(tokenizer, 512, cache, TokenisingSettings(3)).encode(make_records(ROWS))
    assert len(calls) == made == 14  # batches of at most 4 rows in shards of 10


def interrupt_at(first_position: int, encode_rows, batch, indices, **options):
    if indices[0] == first_position:
        raise KeyboardInterrupt
    return encode_rows(batch, indices, **options)


def test_an_interrupted_run_goes_on_with_the_next_shard(
    small_shards, calls, monkeypatch, tokenizer, cache, make_records, tmp_path, capsys
):
    whole = Encoder(tokenizer, 512, Cache(tmp_path / "whole")).encode(make_records(ROWS))
    calls.clear()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(encoder_module, "encode_rows", partial(interrupt_at, 24, encoder_module.encode_rows))
        Encoder(tokenizer, 512, cache).encode(make_records(ROWS))
    assert stored_shards(cache) == [[0, 10], [10, 20]] and calls[-1] == [20, 21, 22, 23]
    calls.clear()
    resumed = Encoder(tokenizer, 512, cache).encode(make_records(ROWS))
    assert [indices[0] for indices in calls] == [20, 24, 28, 30, 34, 38, 40, 44]
    assert "20 of 47 rows were tokenised before an interruption" in " ".join(capsys.readouterr().out.split())
    assert outcome(resumed) == outcome(whole) and stored_shards(cache) == []


def test_a_damaged_shard_is_tokenised_again(
    small_shards, calls, monkeypatch, tokenizer, cache, make_records, tmp_path, capsys
):
    whole = Encoder(tokenizer, 512, Cache(tmp_path / "whole")).encode(make_records(ROWS))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(encoder_module, "encode_rows", partial(interrupt_at, 24, encoder_module.encode_rows))
        Encoder(tokenizer, 512, cache).encode(make_records(ROWS))
    shard_file = min((cache.folder / SHARDS_KIND).glob("*/tokens.arrow"))
    content = shard_file.read_bytes()
    shard_file.write_bytes(content[: len(content) // 2] + b"!" + content[len(content) // 2 + 1 :])
    calls.clear()
    resumed = Encoder(tokenizer, 512, cache).encode(make_records(ROWS))
    assert outcome(resumed) == outcome(whole) and len(calls) == 11  # three batches of it, eight of the others
    assert "is not what was written there" in " ".join(capsys.readouterr().out.split())


def test_shards_left_by_a_kill_after_the_result_are_deleted(small_shards, monkeypatch, tokenizer, cache, make_records):
    with monkeypatch.context() as patch:
        patch.setattr(Cache, "delete", lambda *arguments: None)
        Encoder(tokenizer, 512, cache).encode(make_records(ROWS))
    assert len(stored_shards(cache)) == 5
    Encoder(tokenizer, 512, cache).encode(make_records(ROWS))
    assert stored_shards(cache) == []


def die_at_the_third_shard(batch, indices, **options):
    if indices[0] >= 20:
        time.sleep(0.5)  # until the first shards are handed over
        os.kill(os.getpid(), signal.SIGKILL)
    return encoder_module.encode_rows(batch, indices, **options)


@pytest.mark.slow
def test_a_killed_process_is_named_and_its_shards_stay(small_shards, monkeypatch, tokenizer, cache, make_records):
    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match=r"was killed.*choose fewer processes") as refused,
    ):
        patch.setattr(encoder_module, "encode_rows", die_at_the_third_shard)
        Encoder(tokenizer, 512, cache, TokenisingSettings(2)).encode(make_records(ROWS))
    assert (refused.value.owner, refused.value.arguments) == (TokenisingSettings, ("processes",))
    assert set(map(tuple, stored_shards(cache))) <= {(0, 10), (10, 20)}
    assert len(Encoder(tokenizer, 512, cache).encode(make_records(ROWS))) == ROW_COUNT - 5


def test_what_cannot_be_handed_over_is_refused(small_shards, tokenizer, cache, make_records, monkeypatch):
    monkeypatch.setattr(encoder_module, "encode_rows", lambda batch, indices, **options: {})
    with pytest.raises(UserError, match=r"cannot be handed to other processes .*; tokenise by 1 process"):
        Encoder(tokenizer, 512, cache, TokenisingSettings(2)).encode(make_records(ROWS))


@pytest.mark.parametrize(
    ("processes", "rows", "expected"),
    [("auto", 99_999, 1), ("auto", 100_000, 2), ("auto", 10**8, 5), (3, 10**6, 3), (64, 120_000, 3), (4, 10, 1)],
)
def test_processes_are_counted_by_rows_and_processors(processes, rows, expected, monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 5)
    assert TokenisingSettings(processes).count_processes(rows) == expected


@pytest.mark.parametrize("processes", [0, -1, 1.5, "many", None, True])
def test_numbers_of_processes_are_checked(processes):
    with pytest.raises(OptionsError, match="processes must be a positive whole number or auto, got"):
        TokenisingSettings(processes)


KILLED_RUN = """
import sys
from pathlib import Path
import datasets
datasets.config.HF_DATASETS_CACHE = Path(sys.argv[1]) / "read"
from gradfiltering.data import tokenising
tokenising.ROWS_PER_SHARD = 300
from gradfiltering.data.encoder import Encoder
from gradfiltering.runs.cache import Cache
from tests.support.small_datasets import ALPACA, make_tokenizer
from gradfiltering.data.dataset import InstructionDataset
from gradfiltering.data.file_formats import JSON_LINES
tokenizer = make_tokenizer.__wrapped__()()
rows = datasets.Dataset.from_list(
    [{"instruction": f"Say {n}.", "input": "", "output": f"{n} " * 200} for n in range(6_000)]
)
dataset = InstructionDataset(rows, None, ALPACA, None, frozenset(), "plain", "rows", JSON_LINES)
settings = tokenising.TokenisingSettings(2)
examples = Encoder(tokenizer, 512, Cache(sys.argv[1]), settings).encode(dataset)
print(len(examples), sum(examples.lengths.tolist()))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_and_leaves_no_process(tmp_path):
    command = [sys.executable, "-c", KILLED_RUN, str(tmp_path / "cache")]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    while len(list((tmp_path / "cache" / SHARDS_KIND).glob("*/tokens.arrow"))) < 2 and first.poll() is None:
        time.sleep(0.05)
    first.kill()
    first.wait()
    deadline = time.monotonic() + 30
    while (left := processes_of_session(first.pid)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left, "processes outlive the run that started them"
    assert 2 <= len(Cache(tmp_path / "cache").list_keys(SHARDS_KIND)) < 20
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "of 6,000 rows were tokenised before an interruption" in shown
    counts = shown.splitlines()[-1]
    fresh = [*command[:-1], str(tmp_path / "fresh")]
    assert counts == subprocess.run(fresh, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def processes_of_session(session: int) -> list[int]:
    found = []
    for entry in (path for path in Path("/proc").iterdir() if path.name.isdigit()):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(entry.name))
    return found
