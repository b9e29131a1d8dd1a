"""Studies of layers and of norms of training steps: values by hand, and whole studies on tiny models."""

import json
from argparse import Namespace

import numpy as np
import pandas as pd
import pytest
import study_layers
import study_online

from gradfiltering.requests import EpochLog
from tests.support.gradient_logs import write_epoch
from tests.support.pipeline import SMALL_MODELS, run_train

TINY_STUDY = [
    *SMALL_MODELS[:5], "proxy=tiny", "target=tiny", "proxy.max_tokens=64", "ensemble.batch_size=8", "progress=false",
]  # fmt: skip


def entry(correlation, overlap, **labels):
    quantity = {"spearman": correlation, "overlap": overlap}
    return {**labels, **dict.fromkeys(study_layers.QUANTITIES, quantity)}


def write_log(folder, early, late):
    for epoch, norms in ((1, early), (2, late)):
        tokens = np.full(norms.shape[1], 5, dtype=np.int32)
        log = EpochLog(np.arange(norms.shape[1]), norms, np.ones_like(norms), tokens)
        write_epoch(folder / "gradient_log", log, range(len(norms)), epoch)


def test_quantities_are_those_of_the_formulas(tmp_path):
    write_log(tmp_path, np.array([[4.0, 2.0], [6.0, 2.0]]), np.array([[1.0, 2.0], [3.0, 2.0]]))
    quantities = study_layers.compute_quantities(tmp_path)
    np.testing.assert_allclose(quantities["G_s"], [5, 2])
    np.testing.assert_allclose(quantities["drop"], [0.6, 0.0], atol=1e-8)
    np.testing.assert_allclose(quantities["V_t"], [1, 0])
    np.testing.assert_allclose(quantities["gsnr"], [0.6, 0.0], atol=1e-7)


def test_rows_that_one_run_lacks_are_left_out():
    values = pd.DataFrame(dict.fromkeys(study_layers.QUANTITIES, np.arange(20.0)))
    fewer_in_another_order = values.drop(index=[3, 19]).sample(frac=1, random_state=0)
    comparison = study_layers.compare_quantities(values, fewer_in_another_order)
    assert all(pair == {"spearman": 1.0, "overlap": 1.0} for pair in comparison.values())


def test_equal_rankings_agree_and_reversed_ones_do_not():
    values = pd.DataFrame(dict.fromkeys(study_layers.QUANTITIES, np.arange(20.0)))
    same, opposite = (study_layers.compare_quantities(values, other) for other in (values, -values))
    assert all(pair == {"spearman": 1.0, "overlap": 1.0} for pair in same.values())
    assert all(pair == {"spearman": -1.0, "overlap": 0.0} for pair in opposite.values())


def test_fewer_layers_pass_within_the_tolerance():
    results = {
        "costs": [
            {"layers": layers, "seconds": seconds, "operations": operations}
            for layers, seconds, operations in (("all", 10.0, 4e12), ("8", 5.0, 2e12), ("2", 2.0, 1e12))
        ],
        "with_all_layers": [entry(0.79, 0.59, layers="8"), entry(0.79, 0.5, layers="2")],
        "between_seeds": [entry(0.8, 0.6, layers="all")],
    }
    table = study_layers.write_table(results, ["all", "8", "2"])
    assert "| all, of two seeds | 0.800 / 0.60 |" in table
    assert "| last 8 | 0.790 / 0.59 |" in table and "| 5 | 2e+12 |" in table and "| 2 | 1e+12 |" in table
    assert table.endswith("less 0.02: last 8: agrees as well; last 2: agrees less.\n")


def test_the_table_of_steps_says_whether_they_agree():
    good, poor, noise = entry(0.9, 0.9), entry(0.5, 0.9), entry(0.91, 0.91)
    sizes = [
        {"rows": 2000, "within_seeds": [good], "between_seeds": [noise]},
        {"rows": 500, "within_seeds": [poor], "between_seeds": [noise]},
        {"rows": 100, "within_seeds": [good], "between_seeds": []},
    ]
    lines = [line.strip("| ").split(" | ") for line in study_online.write_table(sizes).splitlines()[2:]]
    assert [(line[0], line[-1]) for line in lines if line[1] == "steps with passes"] == [
        ("2,000", "as well"), ("500", "less"), ("100", "–"),
    ]  # fmt: skip


@pytest.fixture
def started(replace_subprocesses):
    """Note the commands instead of running them, and leave the scores that they would."""
    commands = []

    def run(command):
        run_folder = study_layers.Path(command[-1].removeprefix("run_dir="))
        run_folder.mkdir(parents=True)
        (run_folder / "scores.parquet").touch()
        commands.append(command)

    replace_subprocesses(study_layers, run)
    return commands


def test_another_model_is_another_run_and_the_same_is_not_repeated(started, tmp_path):
    arguments = Namespace(data=tmp_path / "rows.jsonl", folder=tmp_path)
    arguments.data.write_text("{}\n")
    folders = [
        study_layers.score_rows(arguments, "rows-9_seed-0", 9, 0, overrides)
        for overrides in (["proxy=tiny"], ["proxy=smollm2"], ["proxy=tiny"])
    ]
    assert folders[0] == folders[2] != folders[1] and len(started) == 2
    arguments.data.write_text("{}\n{}\n")
    assert study_layers.score_rows(arguments, "rows-9_seed-0", 9, 0, ["proxy=tiny"]) not in folders


@pytest.fixture
def in_this_process(replace_subprocesses):
    replace_subprocesses(study_layers, lambda command: run_train(*command[2:]))


@pytest.mark.slow
def test_a_study_of_layers_compares_with_all_layers(in_this_process, rows_file, tmp_path, capsys):
    json_file, table_file = tmp_path / "study.json", tmp_path / "table.md"
    study_layers.main(
        [
            *TINY_STUDY, "proxy.base_model.layers=2", f"--data={rows_file}", "--rows=30", "--members=2", "--proxy=tiny",
            "--seeds", "0", "1", "--layers", "1", f"--folder={tmp_path}", f"--json={json_file}",
            f"--table={table_file}",
        ]
    )  # fmt: skip
    results = json.loads(json_file.read_text())
    assert results["arguments"]["rows"] == 30 and len(results["costs"]) == 4
    assert [(line["seed"], line["layers"]) for line in results["with_all_layers"]] == [(0, "1"), (1, "1")]
    assert [line["layers"] for line in results["between_seeds"]] == ["all", "1"]
    table = table_file.read_text("utf-8")
    assert table in capsys.readouterr().out and table.count("\n| last 1 |") == 1


@pytest.mark.slow
def test_norms_of_steps_are_compared_at_each_size(in_this_process, rows_file, tmp_path, capsys):
    json_file = tmp_path / "online.json"
    study_online.main(
        [
            *TINY_STUDY, "ensemble.m=2", f"--data={rows_file}", "--rows", "20", "30", "--seeds", "0", "1",
            f"--folder={tmp_path}", f"--json={json_file}",
        ]
    )  # fmt: skip
    sizes = json.loads(json_file.read_text())["sizes"]
    assert [size["rows"] for size in sizes] == [20, 30]
    for size in sizes:
        assert len(size["within_seeds"]) == 2 and len(size["between_seeds"]) == 1
        assert all(pair["G_t"]["spearman"] > 0.5 for pair in size["within_seeds"])
    assert "| 30 | steps with passes |" in capsys.readouterr().out


@pytest.mark.slow
def test_passes_over_some_rows_measure_what_those_over_all_rows_do(in_this_process, rows_file, tmp_path):
    study = [
        *TINY_STUDY, "ensemble.m=2", f"--data={rows_file}", "--rows", "30", "--seeds", "0", f"--folder={tmp_path}",
    ]  # fmt: skip
    study_online.main([*study, f"--json={tmp_path / 'some.json'}", "--compared-rows", "12"])
    assert not [*tmp_path.glob("runs/*snapshot*")], "a run up to the scores would pass over all rows"
    arguments = Namespace(
        data=str(rows_file), folder=tmp_path, compared_rows=12, overrides=[*TINY_STUDY, "ensemble.m=2"]
    )
    some_rows = study_online.measure(arguments, 30, 0, "snapshot")
    arguments.compared_rows = None
    all_rows = study_online.measure(arguments, 30, 0, "snapshot")
    assert len(some_rows) == 12 < len(all_rows)
    for quantity in ("G_s", "G_t"):
        np.testing.assert_allclose(some_rows[quantity], all_rows.loc[some_rows.index, quantity], rtol=1e-4)


def test_steps_and_passes_are_of_whole_epochs():
    arguments = Namespace(overrides=["proxy=smollm2"])  # whose own snapshots are counted in updates
    for way in study_online.WAYS:
        assert study_online.list_overrides(arguments, way) == [
            "epochs=e1_e2",
            f"ensemble.collect={way}",
            "proxy=smollm2",
        ]
