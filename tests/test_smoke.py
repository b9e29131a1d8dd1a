"""A whole run of the smallest kind: every stage from data to page, in seconds."""

from tests.support.pipeline import TINY_RUN, run_train, summary


def test_whole_run_leaves_subset_verdicts_and_page(tmp_path):
    run_train(
        f"run_dir={tmp_path / 'run'}",
        f"cache.path={tmp_path / 'cache'}",
        *TINY_RUN,
        "report.page=true",
        "report.figures=false",
        "judge.labelled_pairs=bundled",
        "judge.labelled_limit=5",
    )
    results = summary(tmp_path / "run")
    assert results["selection"]["selected"] == 6
    assert set(results["pws"]) == {"full", "random"}
    stage_names = [stage["name"] for stage in results["stages"]]
    assert stage_names.index("judge_check") < stage_names.index("base_model"), "before anything is trained"
    # The judge by references has none for these pairs.
    assert results["judge_agreement"]["pairs"] == 5 and results["judge_agreement"]["unreadable_share"] == 1.0
    assert not results["judge_agreement"]["usable"]
    assert any("verdicts of the judge reference are unusable" in text for text in results["diagnostics"]["warnings"])
    for name in ("subset.jsonl", "scores.parquet", "verdicts.jsonl", "report.html", "README.md"):
        assert (tmp_path / "run" / name).is_file(), name
