"""A whole run of the smallest kind: every stage from data to page, in seconds."""

from tests.support.pipeline import TINY_RUN, run_train, summary


def test_whole_run_leaves_subset_verdicts_and_page(tmp_path):
    run_train(
        f"run_dir={tmp_path / 'run'}",
        f"cache.path={tmp_path / 'cache'}",
        *TINY_RUN,
        "report.page=true",
        "report.figures=false",
    )
    results = summary(tmp_path / "run")
    assert results["selection"]["selected"] == 6
    assert set(results["pws"]) == {"full", "random"}
    for name in ("subset.jsonl", "scores.parquet", "verdicts.jsonl", "report.html", "README.md"):
        assert (tmp_path / "run" / name).is_file(), name
