"""Scores and groups of members from the gradient logs of a study: values by hand from run folders written by hand."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gradfiltering.reports.sweep_jobs import read_jobs
from gradfiltering.requests import EpochLog
from gradfiltering.runs.gradient_log import PARQUET_FILE, partition_folder, write_member
from scripts import study_scores
from tests.reports.folders import config_of, write_run

# Rows 0 and 1 are clean: small norms that fall, and members that agree.
EARLY = np.array([[2.0, 3, 4, 5], [2, 3, 4, 5], [2, 3, 4, 5], [2, 3, 4, 5]])
LATE = np.array([[1.0, 2, 4, 6], [1.0, 2, 5, 7], [1.1, 2.2, 3, 6], [1.2, 2.4, 4, 5]])
LOSSES = np.tile([0.5, 1.0, 2.0, 3.0], (4, 1))


@pytest.fixture
def sweep(tmp_path):
    """Three seeds of four members on four rows."""

    def write(members=4, log=True):
        for seed in range(3):
            path = tmp_path / str(seed)
            write_run(
                path, {**config_of(path), "seed": seed}, [f"seed={seed}"], scores=[4.0, 3.0, 2.0, 1.0], chosen=[0, 1]
            )
            truth = {"example_id": range(4), "kind": ["clean", "clean", "gibberish", "wrong_answer"]}
            pq.write_table(pa.table(truth), path / "truth.parquet")
            for epoch, norms in ((1, EARLY), (2, LATE)) if log else ():
                epoch_log = EpochLog(np.arange(4), norms + 0.01 * seed, LOSSES, np.full(4, 9, dtype=np.int32))
                for member in range(members):
                    folder = partition_folder(path / "gradient_log", member, epoch)
                    folder.mkdir(parents=True)
                    write_member(folder / PARQUET_FILE, epoch_log, member)
        return tmp_path

    return write


def test_scores_are_those_of_the_scorers(sweep):
    (job, *_) = study_scores.find_jobs(read_jobs(sweep()))
    scores = study_scores.score_rows(job)
    drop = 2.0 - LATE[:, 0].mean()
    assert scores["drop"][0] == pytest.approx(drop)
    assert scores["relative drop"][0] == pytest.approx(drop / 2.0, rel=1e-6)
    assert scores["late norm, smallest first"].tolist() == pytest.approx((-LATE.mean(0)).tolist())
    assert scores["members' loss, smallest first"].tolist() == [-0.5, -1.0, -2.0, -3.0]


def test_tables_of_three_seeds(sweep, capsys):
    study_scores.main([str(sweep())])
    printed = capsys.readouterr().out
    lines = {line.split("|")[1].strip(): line for line in printed.splitlines() if line.startswith("|")}
    assert "gradient logs of 3 seeds; 50.0% of the rows are clean" in printed
    # A clean row scores above every planted one, in each seed alike; both chosen rows are clean, and half of all are.
    assert [cell.strip() for cell in lines["members' loss, smallest first"].split("|")[2:5]] == ["3", "1.000", "0.500"]
    assert lines["G-SNR − members' loss, smallest first"].split("|")[3].strip() == "0.000"
    assert {"2 members with all 4", "3 members with all 4", "2 members with 2 others"} <= lines.keys()
    assert {"2 members of 4", "3 members of 4"} <= lines.keys()


def test_groups_without_a_common_member_are_each_counted_once():
    pairs = dict(study_scores.list_group_pairs(5))
    assert len(pairs["2 members with all 5"]) == 10 and len(pairs["4 members with all 5"]) == 5
    assert len(pairs["2 members with 2 others"]) == 15 and len(pairs["2 members with 3 others"]) == 10
    assert not any(set(first) & set(second) for first, second in pairs["2 members with 3 others"])


def test_two_members_have_no_groups(sweep, capsys):
    study_scores.main([str(sweep(members=2))])
    assert "none has groups to compare" in capsys.readouterr().out


def test_jobs_without_a_log_are_refused(sweep):
    with pytest.raises(SystemExit, match="no job has a gradient log"):
        study_scores.main([str(sweep(log=False))])
