import json
from dataclasses import asdict

import numpy as np
import pytest
from datasets import Dataset

from gradfiltering.data.dataset import hash_content
from gradfiltering.data.loading import load
from gradfiltering.data.schemas import Columns
from gradfiltering.data.sources import Heldout, HubSource
from gradfiltering.data.templates import Turn
from gradfiltering.errors import UserError
from gradfiltering.methods.subset_files import write_subset
from gradfiltering.runs.run_folder import RunFolder
from gradfiltering.synthetic.planted_defects import PlantedDefects
from gradfiltering.synthetic.task_source import TaskSource

NAMES = ("instruction", "input", "output", "n", "more", "question")
PLANTED = PlantedDefects(0.1, 0.1, 0.1, 0.1, 0.1, 0.1)
NOTHING = PlantedDefects(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
HUB = {
    "name": "nobody/nothing", "config": None, "split": "train", "template": "alpaca", "schema": "auto",
    "corrupt": NOTHING,
}  # fmt: skip

REFUSED = {
    "empty.json": ("", "empty"),
    "empty.jsonl": ("", "is empty; give a file with at least one row"),
    "none.json": ("[]", "is empty; give a file with at least one row"),
    "blank.jsonl": ("\n \n", "is empty; give a file with at least one row"),
    "broken.json": ('[{"instruction": "a", "output": ]', "not valid JSON: .*column 33.*Mend"),
    "broken.jsonl": ('{"instruction": "a", "output": "b"}\n\n{oops}\n', "line 3, is not valid JSON.*Mend the line"),
    "scalar.json": ('[{"instruction": "a", "output": "b"}, 7]', "row 1: 7 is no row; give objects"),
    "null.json": ("null", "row 0: None is no row"),
    "text.jsonl": ('"hello"\n', "row 0: 'hello' is no row"),
    "rows.txt": ("a", r"cannot read '\.txt' files; give one of \.json"),
    "number.jsonl": ('{"a": 1%s}\n' % ("0" * 5000), "line 1, cannot be read: .*digits.*Mend the line"),
}  # fmt: skip


def read_rows(path):
    return load(path).rows


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_reads_arrays_and_lines_alike(name, numbered, write_rows):
    rows = numbered(7)
    assert read_rows(write_rows(rows, name)).to_list() == rows


def test_reads_json_lines_under_the_other_suffix(tmp_path):
    (tmp_path / "rows.json").write_text('{"instruction": "a", "output": "b"}\n{"instruction": "c", "output": "d"}\n')
    assert read_rows(str(tmp_path / "rows.json"))["output"][:] == ["b", "d"]


def test_an_indented_object_is_one_record(tmp_path):
    (tmp_path / "one.json").write_text(json.dumps({"instruction": "a", "output": "b"}, indent=2))
    assert read_rows(str(tmp_path / "one.json")).to_list() == [{"instruction": "a", "output": "b"}]


@pytest.mark.parametrize(
    "name", ["rows[1].jsonl", "st*r.jsonl", "white space.jsonl", "ümlaut.jsonl", "{brace}.jsonl", "50%.jsonl"]
)
def test_any_file_name_is_taken_literally(name, numbered, write_rows, tmp_path):
    (tmp_path / "star.jsonl").write_text('{"instruction": "not asked for", "output": "x"}\n')
    assert read_rows(write_rows(numbered(2), name)).to_list() == numbered(2)


def test_fields_stay_what_the_file_says(write_rows, tmp_path, file_source):
    """Dates are text, Unicode line separators are no line ends, mixed fields keep their types, late fields stay."""
    rows = [
        {"instruction": "a\u2028b", "output": "2023-05-01", "date": "2024-01-01 10:00:00", "mixed": "x", "tags": ["p"]},
        {"instruction": "c", "output": "d", "date": "2024-01-02 10:00:00", "mixed": 3, "tags": [], "late": 1.5},
    ]
    read = read_rows(write_rows(rows)).to_list()
    assert read == rows, "a field that a row lacks stays missing"
    write_subset(RunFolder(tmp_path), file_source(write_rows(rows)).load(0), [0, 1], None)
    lines = (tmp_path / "subset.jsonl").read_text("utf-8").split("\n")[:-1]
    assert [json.loads(line) for line in lines] == read, "dates or mixed fields did not survive into subset.jsonl"


def test_byte_order_mark_is_no_part_of_the_data(tmp_path):
    (tmp_path / "bom.jsonl").write_text('\ufeff{"instruction": "a", "output": "b"}\n', encoding="utf-8")
    assert read_rows(str(tmp_path / "bom.jsonl")).column_names == ["instruction", "output"]


@pytest.mark.parametrize("name", REFUSED)
def test_bad_file_is_an_error_with_name_and_remedy(name, tmp_path):
    text, message = REFUSED[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_rows(str(tmp_path / name))
    assert name in str(caught.value)


def test_other_encodings_are_named(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes('{"instruction": "é", "output": "b"}\n'.encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.jsonl, line 1, is not UTF-8.*iconv"):
        read_rows(str(tmp_path / "latin.jsonl"))


def test_missing_file_names_path_folder_and_option(tmp_path, file_source):
    with pytest.raises(UserError, match=r"no such file: .*nowhere\.jsonl.*looked in .*name a file"):
        file_source(str(tmp_path / "nowhere.jsonl")).load(0)


def test_wrong_column_names_file_column_what_exists_and_option(numbered, write_rows, file_source):
    path = write_rows(numbered(3))
    with pytest.raises(UserError) as caught:
        file_source(path, columns=Columns("instruction", "input", "response")).load(0)
    for part in (path, "'response'", "instruction, input, output, n", "name the columns"):
        assert part in str(caught.value), part


def test_a_column_without_text_names_row_and_value(write_rows, file_source):
    rows = [{"instruction": "a", "output": "b"}, {"instruction": "c", "output": ["d"]}]
    with pytest.raises(
        UserError, match=r"rows\.jsonl, line 2, row 1: column 'output' holds \['d'\], not text.*name another column"
    ):
        file_source(write_rows(rows)).load(0)


def test_missing_and_null_inputs_are_empty(write_rows, file_source):
    rows = [{"instruction": "a", "output": "b"}, {"instruction": "c", "input": None, "output": None}]
    records = file_source(write_rows(rows)).load(0)
    turns = [asdict(records.schema.turn(row)) for row in records.rows]
    assert [(turn["input"], turn["output"]) for turn in turns] == [("", "b"), ("", "")]
    alone = file_source(write_rows(rows[:1])).load(0)
    assert alone.schema.turn(alone.rows[0]).input == "", "a file without the input column must do"


def test_other_column_names(write_rows, file_source):
    rows = [{"question": "a", "context": "b", "answer": "c"}]
    records = file_source(write_rows(rows), columns=Columns("question", "context", "answer")).load(0)
    assert records.schema.turn(records.rows[0]) == Turn("a", "b", "c")


@pytest.mark.parametrize(("limit", "taken"), [(None, 10), (1, 1), (4, 4), (10, 10), (99, 10)])
def test_limit_takes_the_first_rows(limit, taken, numbered, write_rows, file_source):
    records = file_source(write_rows(numbered(10)), limit=limit).load(0)
    assert records.rows["n"][:] == list(range(taken)) and len(records) == taken


def test_held_out_questions_come_with_their_sources(write_rows, file_source):
    rows = [
        {"instruction": f"Q{number}?", "output": "" if number == 4 else "A.", "source": source}
        for number, source in enumerate(["a", "a", "b", "b", "b", None])
    ]
    dataset = file_source(write_rows(rows), limit=2, heldout=(None, 9, 0.0)).load(0)
    questions = [(turn.instruction, source) for turn, source in dataset.heldout_questions()]
    assert questions == [("Q2?", "b"), ("Q3?", "b"), ("Q5?", None)], "a row without an answer is no question"


@pytest.mark.parametrize("limit", [0, -3])
def test_limit_below_one_is_refused(limit, numbered, write_rows, file_source):
    with pytest.raises(UserError, match=f"limit must be a positive whole number or null, got {limit}"):
        file_source(write_rows(numbered(3)), limit=limit).load(0)


@pytest.mark.parametrize(
    ("limit", "rows", "heldout"), [(6, 3, [6, 7, 8]), (6, 99, [6, 7, 8, 9]), (6, 0, None), (None, 3, None)]
)
def test_heldout_rows_follow_the_limit(limit, rows, heldout, numbered, write_rows, file_source):
    records = file_source(write_rows(numbered(10)), limit=limit, heldout=(None, rows, 0.0)).load(0)
    assert (records.heldout and records.heldout["n"][:]) == heldout
    assert records.set_aside == frozenset()
    assert (records.heldout_turns() is None) == (heldout is None)


def test_heldout_share_sets_rows_of_the_pool_aside(numbered, write_rows, file_source):
    path = write_rows(numbered(40))
    records = file_source(path, limit=20, heldout=(None, 200, 0.25)).load(0)
    assert len(records) == 20, "held-out rows stay in the pool, so that example ids are positions in the input"
    assert len(records.set_aside) == 5 and max(records.set_aside) < 20
    assert records.heldout["n"][:] == sorted(records.set_aside)
    assert file_source(path, limit=20, heldout=(None, 200, 0.25)).load(0).set_aside == records.set_aside
    assert file_source(path, limit=20, heldout=(None, 200, 0.25)).load(1).set_aside != records.set_aside


def test_heldout_path_is_read_and_checked(numbered, write_rows, file_source):
    path, held = write_rows(numbered(5)), write_rows(numbered(9)[7:], "held.json")
    records = file_source(path, limit=3, heldout=(held, 1, 0.5)).load(0)
    assert records.heldout["n"][:] == [7, 8] and records.set_aside == frozenset()
    wrong = write_rows([{"prompt": "a"}], "wrong.json")
    with pytest.raises(UserError, match=r"wrong\.json has no column"):
        file_source(path, heldout=(wrong, 0, 0.0)).load(0)


@pytest.mark.parametrize(("rows", "share"), [(-1, 0.0), (0, -0.1), (0, 1.0)])
def test_heldout_settings_out_of_range(rows, share):
    with pytest.raises(UserError, match=r"(rows|share) must be"):
        Heldout(None, rows, share)


def test_corruption_is_planted_and_its_truth_kept_apart(numbered, write_rows, file_source, tmp_path):
    rows = numbered(60)
    records = file_source(write_rows(rows), limit=50, corrupt=PLANTED, heldout=(None, 10, 0.0)).load(3)
    assert len(records.kinds) == len(records) == 50
    assert {kind: records.kinds.count(kind) for kind in set(records.kinds)} == {
        **dict.fromkeys(asdict(PLANTED), 5), "ambiguous": 6, "clean": 19,
    }, "ambiguous rows come in pairs: five are rounded up to six"  # fmt: skip
    assert records.rows.column_names == ["instruction", "input", "output", "n"], "the kind must not be in the rows"
    for row, kind, before in zip(records.rows, records.kinds, rows, strict=False):
        assert kind != "clean" or row == before
        assert kind not in ("wrong_answer", "gibberish", "truncated") or row["output"] != before["output"]
    assert records.heldout.to_list() == rows[50:], "held-out rows stay clean"
    RunFolder(tmp_path).write_truth(records.kinds)
    truth = Dataset.from_parquet(str(tmp_path / "truth.parquet"), cache_dir=str(tmp_path))
    assert truth["example_id"][:] == list(range(50)) and truth["kind"][:] == records.kinds


def test_without_corruption_there_is_no_truth(numbered, write_rows, file_source, tmp_path):
    records = file_source(write_rows(numbered(5))).load(0)
    assert records.kinds is None
    RunFolder(tmp_path).write_truth(records.kinds)
    assert not (tmp_path / "truth.parquet").exists()


def test_corruption_depends_on_the_seed_alone(numbered, write_rows, file_source):
    path = write_rows(numbered(50))
    first, same, other = (file_source(path, corrupt=PLANTED).load(seed) for seed in (0, 0, 1))
    assert first.rows.to_list() == same.rows.to_list() and first.kinds == same.kinds
    assert first.kinds != other.kinds


def test_hub_source_reads_a_local_copy(numbered, write_rows, columns):
    path = write_rows(numbered(8))
    source = HubSource(**HUB, path=path, limit=5, columns=columns, heldout=Heldout(None, 2, 0.0))
    records = source.load(0)
    assert records.rows.to_list() == numbered(5) and records.heldout.to_list() == numbered(7)[5:]
    assert records.origin == path and records.template == "alpaca"


def test_hub_source_says_what_it_cannot_reach(columns, monkeypatch):
    def unreachable(*args, **options):
        raise ConnectionError("no route")

    monkeypatch.setattr("gradfiltering.data.sources.load_dataset", unreachable)
    source = HubSource(**HUB, path=None, limit=None, columns=columns, heldout=Heldout(None, 0, 0.0))
    with pytest.raises(UserError, match=r"nobody/nothing \[train\]: no route.*a local copy"):
        source.load(0)


def test_task_source_limit_heldout_and_truth(columns):
    whole = TaskSource(40, 6, None, "plain", columns, PLANTED).load(0)
    assert len(whole) == 40 and len(whole.heldout) == 6 and len(whole.kinds) == 40
    fewer = TaskSource(40, 0, 10, "plain", columns, NOTHING).load(0)
    clean = TaskSource(40, 0, None, "plain", columns, NOTHING).load(0)
    assert fewer.rows.to_list() == clean.rows.to_list()[:10] and fewer.heldout is None


def test_task_source_refuses_other_columns_and_no_rows(columns):
    with pytest.raises(UserError, match="no column 'answer'"):
        TaskSource(10, 0, None, "plain", Columns("instruction", "input", "answer"), NOTHING).load(0)
    with pytest.raises(UserError, match="rows must be a positive whole number, got 0"):
        TaskSource(0, 0, None, "plain", columns, NOTHING).load(0)


def hash_of(rows):
    return hash_content(rows, NAMES)


def test_content_hash_depends_on_the_content_alone(numbered, write_rows):
    """Not on the file, its format, the rows beyond a limit or how Arrow happens to lay them out."""
    rows = [{**row, "input": row["input"] or None} for row in numbered(12)]
    alone = hash_of(Dataset.from_list(rows[:5]))
    assert hash_of(Dataset.from_list(rows).select(range(5))) == alone
    assert hash_of(Dataset.from_list(rows[7:] + rows).select(range(5, 10))) == alone
    assert hash_of(read_rows(write_rows(rows, "a.json")).select(np.arange(5))) == alone
    assert hash_of(read_rows(write_rows(rows[:5], "b.jsonl"))) == alone


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[::-1],
        lambda rows: rows[:-1],
        lambda rows: [*rows[:-1], {**rows[-1], "output": "other"}],
        lambda rows: [{**row, "input": row["input"] or None} for row in rows],
        lambda rows: [{"question" if name == "instruction" else name: row[name] for name in row} for row in rows],
        lambda rows: [{**row, "n": str(row["n"])} for row in rows],
    ],
)
def test_content_hash_sees_every_change(change, numbered):
    assert hash_of(Dataset.from_list(change(numbered(5)))) != hash_of(Dataset.from_list(numbered(5)))


def test_paths_may_start_at_home(numbered, write_rows, monkeypatch, tmp_path):
    write_rows(numbered(2), "mine.json")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(read_rows("~/mine.json")) == 2
