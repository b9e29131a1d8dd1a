"""What is wrong with the command line is told in plain words, with what could be given."""

import pytest
from tests.pipeline import run_train


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["ensemble.q=1"], ["no option ensemble.q", "batch_size", "clip_norm"]),
        (["nonsense=3"], ["no option nonsense", "ensemble", "scorer"]),
        (["scorer=best"], ["scorer/best", "raw_drop", "gsnr"]),
        (["data=file"], ["data.path is required", "data.path=VALUE"]),
        (["data.limit=abc"], ["data.limit=abc", "a whole number or null"]),
        (["ensemble.m=2.5"], ["ensemble.m=2.5", "a whole number"]),
        (["ensemble.lr="], ["ensemble.lr=", "a number"]),
        (["selector.fraction=1.5"], ["selector.fraction=1.5", "(0, 1]"]),
        (["ensemble.collect=sometimes"], ["ensemble.collect=sometimes", "snapshot, online"]),
        (["scorer=[a"], ["[a"]),
    ],
)
def test_bad_option(overrides, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_train(*overrides, "logger=none", f"run_dir={tmp_path}", f"hydra.run.dir={tmp_path}")
    error = " ".join(capsys.readouterr().err.split())
    assert stopped.value.code == 1 and "Traceback" not in error
    for word in words:
        assert word in error
