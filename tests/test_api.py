"""The Python API: rows in, rows out, and nothing left behind."""

import json
import subprocess
import sys

import datasets
import pandas as pd
import pytest

import gradfiltering
from gradfiltering import UserError, run_experiment, select_rows
from gradfiltering.config.composition import composed, to_overrides
from tests.support.pipeline import SMALL_MODELS, TINY_RUN

ROWS = [{"instruction": f"Say {number} twice.", "input": "", "output": f"{number} {number}"} for number in range(20)]
OPTIONS = {
    **dict(option.split("=") for option in SMALL_MODELS if option.startswith("proxy.")),
    "proxy.base_model.pretraining.steps": 3, "ensemble": {"m": 2, "batch_size": 8}, "diagnostics.bootstrap": 5,
    "progress": False,
}  # fmt: skip
OPTIONS = {name: int(value) if isinstance(value, str) else value for name, value in OPTIONS.items()}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path_factory, monkeypatch, cache):
    folder = tmp_path_factory.mktemp("empty")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GRADFILTERING_CACHE", cache.partition("=")[2])
    return folder


def test_rows_of_a_list_come_back_with_scores_and_a_page(empty_folder, tmp_path):
    selection = select_rows(ROWS, fraction=0.2, proxy="tiny", **OPTIONS)
    assert len(selection.rows) == 4 and selection.rows == [ROWS[example_id] for example_id in selection.example_ids]
    assert set(selection.scores["example_id"]) == set(range(20)) and {"score", "rank"} <= {*selection.scores}
    assert not list(empty_folder.iterdir()), "something stayed in the working folder"
    page = selection.report(tmp_path / "page.html").read_text("utf-8")
    assert "<html" in page and "ROWS.jsonl" in page and "gradfiltering-rows-" not in page
    best = selection.scores.nlargest(4, "score")["example_id"]
    assert sorted(best) == selection.example_ids


def test_every_form_of_rows_gives_the_same_selection(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    forms = [ROWS, path, pd.DataFrame(ROWS), datasets.Dataset.from_list(ROWS)]
    selections = [select_rows(rows, proxy="tiny", scorer="random", fraction=0.2, **OPTIONS) for rows in forms]
    assert len({tuple(selection.example_ids) for selection in selections}) == 1
    expected = selections[0].rows
    assert selections[1].rows == expected
    assert selections[2].rows.to_dict("records") == expected
    assert selections[3].rows.to_list() == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": "gone.jsonl"}, "no such file"),
        ({"rows": [1]}, "rows must be a path"),
        ({"rows": ""}, "the path of the data is empty; name a file"),
        ({"rows": []}, "there are no rows in this list"),
        ({"rows": pd.DataFrame(columns=["instruction", "output"])}, "there are no rows in this DataFrame"),
        ({"rows": [{"instruction": "a", "output": 5}]}, "^rows, line 1, row 0: column 'output' holds 5, not text"),
        ({"rows": datasets.Dataset.from_list([{"question_of": "a"}])}, "^rows has no column 'instruction'"),
        ({"rows": (row for row in ROWS)}, "rows must be a path, .* got generator"),
        ({"rows": datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS))}, "of one split, .* got DatasetDict"),
        ({"rows": datasets.Dataset.from_list(ROWS).to_iterable_dataset()}, "not streamed.* got IterableDataset"),
        ({"rows": [*ROWS, {"a": {1}}]}, "row 20 cannot be written as JSON: Object of type set"),
        ({"rows": pd.DataFrame([["a", "b"]], columns=["a", "a"])}, "cannot be written as parquet: Duplicate column"),
        ({"rows": ROWS, "proxy": None}, "proxy must be a name or a folder, got None"),
        ({"fraction": 0}, "selector.fraction=0"),
        ({"ensemble": {"q": 3}}, "no option ensemble.q"),
        ({"scorer": "best"}, "scorer/best"),
        ({"proxy": "nowhere"}, "cannot load nowhere"),
    ],
)
def test_errors_are_raised_with_the_option(arguments, message):
    with pytest.raises(UserError, match=message):
        select_rows(**{"rows": ROWS, **arguments})


@pytest.mark.parametrize("options", [{"until": "proxy", "scorer": "random"}, {"plan": {"only": True}}])
def test_a_run_that_selects_no_rows_is_refused_in_words(options):
    with pytest.raises(UserError, match="ended before it selected rows; leave out until and plan"):
        select_rows(ROWS, proxy="tiny", **options, **OPTIONS)


def test_a_folder_that_is_named_holds_the_run(tmp_path):
    options = {"run_dir": tmp_path / "run", "report": {"page": False}}
    selection = select_rows(ROWS, proxy="tiny", scorer="random", **options, **OPTIONS)
    subset = pd.read_parquet(tmp_path / "run" / "subset.parquet")
    assert subset["example_id"].tolist() == selection.example_ids and len(selection.rows) == 2
    with pytest.raises(UserError, match="the rows were selected without a page"):
        selection.report(tmp_path / "page.html")


@pytest.mark.parametrize("overrides", ["until=select", [1], ["-m", "until=select"], None])
def test_what_is_no_list_of_overrides_is_refused(overrides):
    with pytest.raises(UserError, match="give a list of NAME=VALUE"):
        run_experiment(overrides)


@pytest.mark.parametrize("option", ["run_dir=", "cache.path=", "data.path=", "data.heldout.path="])
def test_an_empty_name_is_not_the_working_folder(option, empty_folder, tmp_path):
    (empty_folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    overrides = ["data=file", f"data.path={empty_folder / 'rows.jsonl'}", "proxy=tiny", "target=tiny", "logger=none"]
    with pytest.raises(UserError, match=f"{option}''"):
        run_experiment([*overrides, f"run_dir={tmp_path}", option])


def test_an_experiment_runs_by_overrides(tmp_path):
    result = run_experiment([*TINY_RUN, f"run_dir={tmp_path / 'run'}", f"hydra.run.dir={tmp_path / 'run'}"])
    assert result.folder == tmp_path / "run" and set(result.summary["pws"]) == {"full", "random"}
    with pytest.raises(UserError, match="gradfiltering run -m"):
        run_experiment(["-m", "seed=1,2"])


def test_values_survive_the_way_through_overrides():
    texts = {"path": "a b,c='d'\\", "text": "1e3", "quote": "it\\'s"}
    values = {**texts, "flag": True, "none": None, "list": ["x", 1, 0.5, "null"]}
    with composed(to_overrides({"+extra": values})) as cfg:
        assert dict(cfg.extra) == values


def test_public_names_exist_and_import_is_quick():
    assert all(getattr(gradfiltering, name) for name in gradfiltering.__all__)
    code = "import time; t = time.time(); import gradfiltering; dir(gradfiltering); assert time.time() - t < 0.5; " \
        "import sys; assert not {'torch', 'hydra', 'pandas'} & {*sys.modules}"  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True)
