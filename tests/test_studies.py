"""Each study runs to its end at the smallest size, with tiny models in the place of SmolLM2, and has its table."""

import json
from argparse import Namespace

import pytest

from gradfiltering.reports.sweep_jobs import read_jobs
from gradfiltering.synthetic.task_generator import generate_rows
from scripts import study_tables
from tests.support.pipeline import SMALL_MODELS, TINY_MODELS, run_train

ALPACA, GSM8K, CODE, DOLLY = (f"data.sources.{name}.path" for name in ("alpaca", "gsm8k", "code", "dolly"))
SMALLEST = [
    *TINY_MODELS, *SMALL_MODELS, "proxy.max_tokens=64", "target.max_tokens=64", "ensemble.m=2",
    "target.tuning.epochs=1",
    "diagnostics.bootstrap=20", "progress=false", "seed=0",
]  # fmt: skip
ALL_LAYERS = ["ensemble.lora.layers=all", "target.tuning.lora.layers=all"]  # the tiny models have no eight
FEW_ROWS = ["data.limit=40", "data.heldout.rows=6"]
# Study -> the files it asks for, its options at the smallest size, and its table.
STUDIES = {
    "study_alpaca": ([ALPACA], [*FEW_ROWS, "until=report", "target.max_new_tokens=2", "eval.limit=2"], "methods"),
    "study_main": ([ALPACA], [*FEW_ROWS, "method=gradfiltering,low_loss"], "methods"),
    "[study_main,study_clean]": ([ALPACA], [*FEW_ROWS, "method=superfiltering", "until=select"], "methods"),
    "study_mixture": ([ALPACA, GSM8K, CODE, DOLLY], ["data.limit=40", "scorer=direction_gsnr"], "tasks"),
    "study_direction": ([ALPACA, GSM8K], ["data.limit=100", "method=less"], "tasks"),
    "study_sensitivity": (
        [ALPACA], ["data.limit=40", "ensemble.m=3,2", "ensemble.lr=1e-3", "epochs=e1_e2"], "variance"
    ),
    "study_checks": ([ALPACA], [*FEW_ROWS, "ensemble=lora,bootstrap", "scorer=gsnr"], "gradients"),
    "study_registered": ([DOLLY], [*FEW_ROWS, "scorer=prompted_likelihood", "selector=stratified"], "methods"),
    "study_curriculum": ([], ["data.rows=60", "data.heldout_rows=8", "scorer=gsnr", "epochs=e1_e2"], "kinds"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rows of the bundled tasks as a user's files, one with a quiz's fields; and a cache that the studies share."""
    folder = tmp_path_factory.mktemp("studies")
    rows = [{name: row[name] for name in ("instruction", "input", "output")} for row in generate_rows(320, 0, "train")]
    (folder / "rows.json").write_text(json.dumps(rows))
    quiz_rows = [{"question": row["instruction"], "answer": row["output"]} for row in rows]
    (folder / "quiz.json").write_text(json.dumps(quiz_rows))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_a_study_runs_at_the_smallest_size_and_has_its_table(study, folder, tmp_path):
    paths, options, table = STUDIES[study]
    files = [f"{path}={folder / ('quiz.json' if path == GSM8K else 'rows.json')}" for path in paths]
    given = {option.partition("=")[0] for option in options}
    smallest = [option for option in [*SMALLEST, *ALL_LAYERS] if option.partition("=")[0] not in given]
    run_train(
        "-m", f"experiment={study}", *files, *smallest, *options, f"hydra.sweep.dir={tmp_path / 'sweep'}",
        f"cache.path={folder / 'cache'}",
    )  # fmt: skip
    jobs = read_jobs(tmp_path / "sweep")
    assert all(job.summary["selection"]["selected"] > 0 for job in jobs)
    factors = ["seed", "ensemble.m"] if table == "variance" else []
    tables = study_tables.TABLES[table](jobs, Namespace(compare=[], factors=factors))
    assert tables and all("|" in text for text in tables)
    if study == "study_mixture":
        assert [text.split()[0] for text in tables] == ["Held-out", "Share", "Cosine"]
