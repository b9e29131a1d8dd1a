"""Tables of the studies: values by hand from run folders written by hand."""

import json
import sys
from argparse import Namespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gradfiltering.reports.sweep_jobs import read_jobs
from gradfiltering.requests import EpochLog
from gradfiltering.runs.gradient_log import PARQUET_FILE, partition_folder, write_member
from scripts import study_tables
from tests.reports.folders import config_of, write_run

NO_ARGUMENTS = Namespace(compare=[], factors=[])
NORMS = {1: np.array([[4.0, 4, 4, 4], [6, 6, 6, 6]]), 2: np.array([[1.0, 2, 3, 4], [1, 2, 5, 8]])}
LOSSES = {1: np.full((2, 4), 3.0), 2: np.array([[0.5, 1.0, 2.0, 3.0], [0.5, 1.0, 2.0, 3.0]])}
TOKENS = np.array([1, 4, 9, 16], dtype=np.int32)


def make_job(folder, number, seed, overrides, config=(), log=False, heldout_log=False, heldout_norms=True, **summary):
    path = folder / str(number)
    job_config = {**config_of(path), "seed": seed, **dict(config)}
    write_run(path, job_config, [*overrides, f"seed={seed}"], scores=[4.0, 3.0, 2.0, 1.0], chosen=[0], **summary)
    for name, is_wanted in (("gradient_log", log), ("gradient_log_heldout", heldout_log)):
        for epoch in (1, 2) if is_wanted else ():
            norms = NORMS[epoch] + 0.1 * seed
            if name == "gradient_log_heldout" and not heldout_norms:
                norms = np.full_like(norms, np.nan)
            epoch_log = EpochLog(np.arange(4), norms, LOSSES[epoch], TOKENS)
            for member in range(2):
                member_folder = partition_folder(path / name, member, epoch)
                member_folder.mkdir(parents=True)
                write_member(member_folder / PARQUET_FILE, epoch_log, member)
    return path


def result_of(loss, **by_source):
    return {"heldout_loss": loss, "seconds": 60.0, "heldout_by_source": by_source}


def truth_of(area, **shares):
    kinds = {kind: {"pool": pool, "selected": selected} for kind, (pool, selected) in shares.items()}
    return {"warnings": [], "truth": {"auc": {"scorer": {"value": area}}, "share": kinds}}


@pytest.fixture
def read(tmp_path):
    """Write jobs, and return a table of them as lines of cells."""

    def read_table(table, number=0, arguments=NO_ARGUMENTS):
        text = study_tables.TABLES[table](read_jobs(tmp_path), arguments)[number]
        lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line]
        header, _, *body = lines
        return {line[0]: dict(zip(header[1:], line[1:], strict=True)) for line in body}, text

    return read_table


def test_settings_are_compared_seed_by_seed(tmp_path, read):
    for seed, (first, second, random) in enumerate([(1.0, 1.3, 1.1), (2.0, 2.2, 2.1), (3.0, 3.4, 3.3)]):
        for number, (scorer, loss) in enumerate([("gsnr", first), ("ifd", second)]):
            target = {"candidate": result_of(loss), "random": result_of(random)}
            area = 0.6 + 0.01 * seed + 0.1 * number
            make_job(tmp_path, 2 * seed + number, seed, [f"scorer={scorer}"], target=target, diagnostics=truth_of(area))
    methods, text = read("methods")
    assert methods["gsnr"]["held-out loss − that of random"].startswith("-0.167 [-0.454, 0.120] p = ")
    assert methods["gsnr"]["seeds"] == "3" and methods["gsnr"]["minutes of selecting"] == "0.0"
    assert methods["ifd"]["AUC, clean over planted"].startswith("0.710 [0.685, 0.735]\\* p = ")
    assert "4 tests, corrected by Holm's method." in text
    pairs, _ = read("methods", 1)
    assert pairs["gsnr − ifd"]["held-out loss"].startswith("-0.300 [-0.548, -0.052]\\* p = 0.035")
    assert pairs["gsnr − ifd"]["AUC, clean over planted"].startswith("-0.100")


def test_methods_stand_by_loss_with_composition_and_cost(tmp_path, read):
    for number, (scorer, loss, clean) in enumerate([("ifd", 2.0, 0.5), ("gsnr", 1.0, 0.75), ("gsnr", 1.5, 1.0)]):
        make_job(
            tmp_path, number, number, [f"scorer={scorer}"], target={"candidate": result_of(loss)},
            diagnostics=truth_of(0.5, clean=(0.5, clean), gibberish=(0.5, 1 - clean)),
            cost={"proxy": {"peak_bytes": 2**30 * (1 + number)}, "target": {"peak_bytes": 2**29}},
        )  # fmt: skip
    make_job(tmp_path, 3, 3, ["scorer=loss"])
    methods, _ = read("methods")
    assert list(methods) == ["gsnr", "ifd", "loss"]
    assert methods["gsnr"]["clean %"] == "87.5" and methods["gsnr"]["gibberish %"] == "12.5"
    assert methods["gsnr"]["peak GiB"] == "3.00" and methods["ifd"]["peak GiB"] == "1.00"
    assert methods["loss"]["clean %"] == methods["loss"]["AUC, clean over planted"] == "–"


def test_unknown_settings_are_named(tmp_path, read):
    make_job(tmp_path, 0, 0, ["scorer=gsnr"])
    with pytest.raises(SystemExit, match="no setting spice; there are all jobs"):
        read("methods", arguments=Namespace(compare=[["spice", "all jobs"]], factors=[]))


def test_answers_to_each_task_are_held_against_the_mean_of_the_random_draws(tmp_path, read):
    metrics = {
        "candidate": {"heldout_maths": {"chrf": 0.5, "final_number": 0.25}, "vicuna": {"chrf": 0.9}},
        "random": {"heldout_maths": {"chrf": 0.25, "final_number": 0.0}},
        "random_2": {"heldout_maths": {"chrf": 0.5, "final_number": 0.5}},
        "random_same_updates": {"heldout_maths": {"chrf": 9.0, "final_number": 9.0}},
    }
    make_job(tmp_path, 0, 0, [], metrics=metrics)
    code_metrics = {
        name: {"heldout": {"chrf": value, "final_number": None}}
        for name, value in (("candidate", 1.0), ("random", 0.25))
    }
    make_job(tmp_path, 1, 1, [], metrics=code_metrics)
    answers, _ = read("tasks")
    assert answers["all jobs"]["maths: chrf − that of random"].startswith("0.125")
    assert answers["all jobs"]["maths: final_number − that of random"].startswith("0.000")
    assert answers["all jobs"]["heldout: chrf − that of random"].startswith("0.750")
    assert not any("vicuna" in name for name in answers["all jobs"])


def test_tasks_are_held_against_the_mean_of_the_random_draws(tmp_path, read):
    target = {
        "candidate": result_of(1.0, code=1.5, maths=2.0), "random": result_of(1.0, code=1.0, maths=1.0),
        "random_2": result_of(1.0, code=2.0, maths=1.5), "random_same_updates": result_of(9.0, code=9.0, maths=9.0),
    }  # fmt: skip
    shares = {"code": {"pool": 0.5, "selected": 1.0}, "maths": {"pool": 0.5, "selected": 0.0}}
    diagnostics = {"warnings": [], "sources": {"share": shares}}
    path = make_job(tmp_path, 0, 0, [], log=True, target=target, diagnostics=diagnostics)
    rows = {
        "example_id": range(4),
        "prompt": ["p"] * 4,
        "response": ["r"] * 4,
        "source": ["code", "code", "maths", "maths"],
    }
    pq.write_table(pa.table({name: list(values) for name, values in rows.items()}), path / "rows.parquet")
    for member, maths in enumerate(([0.0, 2.0], [3.0, 0.0])):
        folder = partition_folder(path / "projections", member, 2)
        folder.mkdir(parents=True)
        np.save(folder / "projections.npy", np.array([[1.0, 0.0], [3.0, 0.0], maths, maths], dtype=np.float32))
    losses, _ = read("tasks")
    assert losses["all jobs"]["code: held-out loss − that of random"] == "0.000"
    assert losses["all jobs"]["maths: held-out loss − that of random"] == "0.750"
    recalls, _ = read("tasks", 1)
    assert recalls["all jobs"]["code: share of its rows chosen − that of all rows"] == "0.250"  # 1 of 2, of 4
    assert recalls["all jobs"]["maths: share of its rows chosen − that of all rows"] == "-0.250"
    cosines, _ = read("tasks", 2)
    assert cosines["all jobs"]["code, maths"] == "0.500"  # 0 in one member, 1 in the other
    summary = json.loads((path / "summary.json").read_text("utf-8"))
    summary["data"] |= {"unscored_reasons": {"held out: to measure the loss": 2, "no question": 1}}
    (path / "summary.json").write_text(json.dumps(summary), "utf-8")
    recalls, _ = read("tasks", 1)
    assert (
        recalls["all jobs"]["code: share of its rows chosen − that of all rows"] == "0.500"
    )  # of 2 that can be chosen


def test_kinds_are_counted_against_their_share_of_the_pool(tmp_path, read):
    for seed, selected in enumerate((0.1, 0.2, 0.3)):
        truth = truth_of(0.5, clean=(0.8, 0.8), composition=(0.2, selected))
        path = make_job(tmp_path, seed, seed, [], log=True, diagnostics=truth)
        kinds = pa.table({"example_id": range(4), "kind": ["clean", "clean", "clean", "composition"]})
        pq.write_table(kinds, path / "truth.parquet")
    rates, _ = read("kinds")
    assert rates["all jobs"]["composition"].startswith("1.000 [-0.242, 2.242] p = 1")
    losses, _ = read("kinds", 1)
    assert losses["all jobs"]["composition, late"] == "3.000" and losses["all jobs"]["clean, late"] == "1.167"


def test_variance_is_shared_over_the_factors(tmp_path, read):
    areas = {("3", "1e-4"): 0.5, ("3", "3e-4"): 0.6, ("5", "1e-4"): 0.5, ("5", "3e-4"): 0.6}
    for number, ((members, rate), area) in enumerate(areas.items()):
        config = {"ensemble": {"m": int(members), "lr": float(rate)}}
        make_job(
            tmp_path, number, 0, [f"ensemble.m={members}", f"ensemble.lr={rate}"], config, diagnostics=truth_of(area)
        )
    (tmp_path / "0" / "subset.parquet").unlink()
    pq.write_table(pa.table({"example_id": [3], "score": [1.0]}), tmp_path / "0" / "subset.parquet")
    factors = Namespace(compare=[], factors=["ensemble.m", "ensemble.lr"])
    shares, _ = read("variance", arguments=factors)
    assert shares["ensemble.lr"]["AUC, first order"] == "100.0%" and shares["ensemble.m"]["AUC, total"] == "0.0%"
    overlap = "overlap with the largest setting"
    assert shares["ensemble.lr"][f"{overlap}, first order"] == "33.3%"
    assert shares["ensemble.lr"][f"{overlap}, total"] == "66.7%"
    _, text = read("variance", 1, factors)
    assert ["ensemble.m", "3", "0.550", "0.500"] in [
        [c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()
    ]


def test_variance_and_scales_are_correlated_by_hand(tmp_path, read):
    make_job(tmp_path, 0, 0, ["proxy=tiny"], log=True, heldout_log=True)
    make_job(tmp_path, 1, 0, ["proxy=smollm2"], log=True)
    variance, _ = read("gradients")
    assert variance["proxy=tiny"]["V with loss, held-out rows"] == variance["proxy=tiny"]["V with G, trained rows"]
    assert variance["proxy=tiny"]["V with loss, trained rows"] == "0.949"  # variances 0, 0, 1, 4
    scales, _ = read("gradients", 1)
    assert scales["proxy=tiny"]["G, sum"] == "1.000"  # longer rows have the larger norms already
    agreement, _ = read("gradients", 2)
    equal_logs = agreement["proxy=tiny with proxy=smollm2"]
    names = ("late norm", "relative drop", "V_t", "G-SNR", "shared top tenth by G-SNR")
    assert {name: equal_logs[name] for name in names} == dict.fromkeys(names, "1.000")


def test_heldout_losses_without_norms_have_no_correlation(tmp_path, read):
    make_job(tmp_path, 0, 0, ["proxy=tiny"], log=True, heldout_log=True, heldout_norms=False)
    variance, _ = read("gradients")
    (correlations,) = variance.values()
    assert "V with loss, trained rows" in correlations and "V with loss, held-out rows" not in correlations


def test_pulls_of_unit_vectors_forget_lengths(tmp_path, read):
    path = make_job(tmp_path, 0, 0, [], log=True)
    vectors = np.array([[9.0, 0.0], [1.0, 0.5], [1.0, 1.0], [1.0, 2.0]], dtype=np.float32)
    for member in range(2):
        folder = partition_folder(path / "projections", member, 2)
        folder.mkdir(parents=True)
        np.save(folder / "projections.npy", vectors)
    directions, _ = read("gradients", 2)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = study_tables.spearman_correlation(vectors @ vectors.mean(0), unit @ unit.mean(0))
    assert directions["all jobs"]["mean with unit"] == f"{expected:.3f}"


def test_several_folders_are_one_sweep_on_the_command_line(tmp_path, capsys, monkeypatch):
    for name, scorer, loss in (("first", "gsnr", 1.0), ("second", "ifd", 1.5)):
        make_job(
            tmp_path / name, 0, 0, [f"scorer={scorer}"], target={"candidate": result_of(loss), "full": result_of(2)}
        )
    folders = [str(tmp_path / name) for name in ("first", "second")]
    monkeypatch.setattr(sys, "argv", ["study_tables.py", "methods", *folders, "--compare", "gsnr", "ifd"])
    study_tables.main()
    printed = capsys.readouterr().out
    assert (
        "gsnr − ifd" in printed and "-0.500" in printed and json.dumps("held-out loss − that of full")[1:4] in printed
    )


def test_a_measure_that_other_seeds_lack_says_how_many_have_it(tmp_path, read):
    for seed in range(4):
        target = {"candidate": result_of(1.0), "random": result_of(1.1 + 0.01 * seed)} if seed < 3 else {}
        make_job(tmp_path, seed, seed, ["scorer=gsnr"], target=target, diagnostics=truth_of(0.6 + 0.01 * seed))
    methods, _ = read("methods")
    assert methods["all jobs"]["seeds"] == "4"
    assert methods["all jobs"]["held-out loss − that of random"].endswith("(3 seeds)")
    assert "seeds)" not in methods["all jobs"]["AUC, clean over planted"]
