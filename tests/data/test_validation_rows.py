import json

import pytest

from gradfiltering.data.dataset import Columns
from gradfiltering.data.encoder import Encoder
from gradfiltering.data.validation_rows import validation_rows
from gradfiltering.errors import UserError
from gradfiltering.runs.cache import Cache
from gradfiltering.synthetic.planted_defects import PlantedDefects
from gradfiltering.synthetic.pretraining import train_tokenizer
from gradfiltering.synthetic.task_source import TaskSource

NONE = PlantedDefects(0, 0, 0, 0, 0, 0)


def records(heldout=8):
    return TaskSource(12, heldout, None, "plain", Columns("instruction", "input", "output"), NONE).load(seed=0)


@pytest.fixture
def file(tmp_path):
    def write(*rows, name="own.jsonl"):
        path = tmp_path / name
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def encoder(tmp_path):
    return Encoder(train_tokenizer(["Say it is. 0 1 2 3"], 300), 96, Cache(tmp_path / "cache"))


def row(output="Yes.", **more):
    return {"instruction": "Say yes.", "input": "", "output": output, **more}


def test_held_out_rows_are_told_apart_by_their_source():
    found = records()
    rows = validation_rows(found, None, "auto")
    assert rows.tasks == list(found.heldout["source"]) and len(set(rows.tasks)) > 1
    assert validation_rows(found, None, "source").tasks == rows.tasks
    assert validation_rows(found, None, None).tasks == ["all"] * 8


def test_a_files_own_field_names_the_tasks(file):
    rows = validation_rows(records(), file(row(skill=3), row(skill="b")), "skill")
    assert rows.tasks == ["3", "b"] and len(rows.dataset.heldout) == 2
    assert validation_rows(records(), file(row(skill=3)), "auto").tasks == ["all"], "no field source: one task"


def test_rows_without_a_response_are_left_out_with_their_task(file, encoder):
    rows = validation_rows(records(), file(row(source="a"), row("", source="b"), row(source="c")), "auto")
    examples, tasks = rows.encode(encoder)
    assert examples.example_ids.tolist() == [0, 2] and tasks.tolist() == ["a", "c"]


def test_held_out_rows_are_the_same_examples_as_ever(encoder):
    found = records()
    examples, tasks = validation_rows(found, None, "auto").encode(encoder)
    assert examples.table["input_ids"][:] == encoder.encode_heldout(found).table["input_ids"][:]
    assert len(tasks) == len(examples)


@pytest.mark.parametrize(
    ("rows", "task", "message"),
    [
        ([{"instruction": "a"}], None, r"own\.jsonl has no column 'output', which the data's schema alpaca reads"),
        ([row(output=7)], None, r"column 'output' holds 7, not text"),
        ([row()], "skill", r"own\.jsonl have no field .skill. .*they have: instruction, input, output"),
        ([row(skill="a"), row()], "skill", r"row 1 has no 'skill'.*name no field"),
    ],
)
def test_files_that_do_not_fit(rows, task, message, file):
    with pytest.raises(UserError, match=message):
        validation_rows(records(), file(*rows), task)


def test_nothing_to_validate_on(file, encoder, tmp_path):
    with pytest.raises(UserError, match="nothing is held out; name a file"):
        validation_rows(records(heldout=0), None, "auto")
    assert validation_rows(records(heldout=0), file(row()), "auto").tasks == ["all"]
    with pytest.raises(UserError, match="no such file"):
        validation_rows(records(), str(tmp_path / "gone.jsonl"), "auto")
    with pytest.raises(UserError, match=r"none of the 1 validation rows .*has a response"):
        validation_rows(records(), file(row("")), "auto").encode(encoder)
