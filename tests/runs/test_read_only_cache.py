"""A cache that cannot be written serves runs that need no more than it holds; others are refused before any work."""

import shutil

import datasets
import pytest

from gradfiltering.errors import UserError
from gradfiltering.judging.ratings import RatingStore
from gradfiltering.judging.reply_store import ReplyKey, ReplyStore, StoredReply
from gradfiltering.runs.cache import Cache
from tests.support.folders import read_only
from tests.support.pipeline import TINY_RUN, run_train

KEY = {"seed": 0}
RESULTS = ["subset.jsonl", "scores.parquet", "verdicts.jsonl", "target/candidate/curve.csv"]


def write_result(folder):
    (folder / "weights.txt").write_text("result")


def options(folder, run):
    run_folder = [f"run_dir={folder / run}", f"hydra.run.dir={folder / run}", f"cache.path={folder / 'cache'}"]
    return [*TINY_RUN, *run_folder]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run folder, its cache, and the cache of the rows that it read."""
    folder = tmp_path_factory.mktemp("read_only")
    run_train(*options(folder, "first"))
    return folder


def test_a_run_needs_no_more_than_to_read_a_whole_cache(place):
    with read_only(place / "cache"):
        run_train(*options(place, "second"))
    for name in RESULTS:
        assert (place / "second" / name).read_bytes() == (place / "first" / name).read_bytes()


@pytest.mark.parametrize(
    "kind",
    ["members", "gradient_log"]
    + [
        pytest.param(kind, marks=pytest.mark.slow)
        for kind in ("base_models", "base_model_losses", "targets", "answers")
    ],
)
def test_a_missing_result_is_refused_before_it_is_computed(kind, place, tmp_path, capsys, monkeypatch):
    shutil.copytree(place / "cache", tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache" / kind)
    refused = AssertionError("worked in vain")
    monkeypatch.setattr("gradfiltering.ensembles.stack_training.StackTrainer.train", raising(refused))
    monkeypatch.setattr("gradfiltering.evidence.base_model_losses._compute_losses", raising(refused))
    monkeypatch.setattr("gradfiltering.evidence.ensemble_passes.EnsemblePasses._measure_rows", raising(refused))
    monkeypatch.setattr("gradfiltering.finetuning.fine_tune.fine_tune", raising(refused))
    with read_only(tmp_path / "cache"), pytest.raises(SystemExit):
        run_train(*options(tmp_path, "run"))
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 1 and "error  cannot write" in shown and "cache.path=" in shown


def raising(error):
    def refuse(*_, **__):
        raise error

    return refuse


def test_a_damaged_result_is_not_made_again_in_a_read_only_cache(tmp_path):
    path = Cache(tmp_path).get_or_compute("base_models", KEY, write_result).path
    (path / "weights.txt").write_text("other!")
    with read_only(tmp_path), pytest.raises(UserError, match=r"cannot write.*(Read-only|Permission)"):
        Cache(tmp_path).get_or_compute("base_models", KEY, write_result)


def test_locks_and_checkpoints_may_stay_where_nothing_can_be_written(tmp_path):
    cache = Cache(tmp_path)
    cache.commit("targets", KEY, write_result)
    cache.resume_point("targets", KEY).save({}, {"steps": 1})
    with read_only(tmp_path):
        with cache.lock("targets", KEY):
            assert cache.commit("targets", KEY, raising(AssertionError)).reused
        cache.resume_point("targets", KEY).delete()
        cache.resume_point("members", KEY).delete()
        cache.delete("members", KEY)
        assert cache.resume_point("targets", KEY).load().state == {"steps": 1}
        with pytest.raises(UserError, match="cannot write"):
            cache.check_writable()
    cache.check_writable()
    assert not list(tmp_path.glob("*.part"))


def test_stored_replies_and_ratings_are_read_where_they_cannot_be_written(tmp_path):
    key, reply = ReplyKey("openai", "m", "abc", 0, 0, 0), StoredReply("A", "stop", 3, 1)
    replies, ratings = ReplyStore(tmp_path / "replies.sqlite"), RatingStore(tmp_path / "ratings.sqlite", seed=0)
    replies.put_all([(key, reply)])
    ratings.add_all([("p", "ann", "first")])
    replies.close()
    ratings.close()
    with read_only(tmp_path):
        replies, ratings = ReplyStore(tmp_path / "replies.sqlite"), RatingStore(tmp_path / "ratings.sqlite", seed=0)
        assert replies.get(key) == reply and ratings.labels_by_rater(None) == {"ann": {"p": "first"}}
        with pytest.raises(UserError, match=r"replies\.sqlite: attempt to write a readonly database"):
            replies.check_writable()
        replies.close()
        ratings.close()
        with pytest.raises(UserError, match=r"cannot .*new"):
            ReplyStore(tmp_path / "new.sqlite")


@pytest.mark.parametrize("stored", ["rows", "nothing"])
def test_rows_that_were_read_need_no_lock(stored, tmp_path, monkeypatch):
    from gradfiltering.data.loading import load

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    (tmp_path / "hf").mkdir()
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "a", "output": "b"}\n', "utf-8")
    if stored == "rows":
        load(str(rows))
    with read_only(tmp_path / "hf"):
        if stored == "nothing":
            with pytest.raises(UserError, match=r"cannot write.*HF_DATASETS_CACHE"):
                load(str(rows))
        else:
            assert load(str(rows)).rows[0]["output"] == "b"
