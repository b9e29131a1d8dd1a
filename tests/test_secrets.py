"""Values of options named like a secret are in no file of a run or a sweep, and not on the screen."""

import pytest

from gradfiltering.masking import mask_override, mask_secrets, mask_text, names_secret, remember_secrets
from tests.support.pipeline import TINY_RUN, run_train

SECRET = "s3cr3t"  # each of the options below has it in its value, with a number of its own
OPTIONS = [
    "+judge.request.api_key={}",
    "+judge.request.headers.X-Team={}",
    "+extra={{deep: [{{auth_token: {}}}, plain]}}",
    "+extra.cookies=[{},b]",
    "+extra.Authorization='Bearer {}'",
    "+extra.aws_secret_access_key={}",
    "+extra.mirror='https://ann:{}@example.org/path'",
    "+extra.note='https://example.org/?token={}'",
    "+extra.list=['https://{}@example.org']",
    "+extra.db_password={}",
    "+extra.credentials={{user: {}}}",
]


def secret_options() -> list[str]:
    return [option.format(f"{SECRET}{number}") for number, option in enumerate(OPTIONS)]


def files_with_secret(folder) -> list[str]:
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and SECRET in path.read_bytes().decode("latin-1")
    ]


@pytest.fixture
def failing(monkeypatch):
    """A run whose data stage fails with all secrets in its words."""

    def fail(*_):
        raise ZeroDivisionError(" ".join(secret_options()))

    monkeypatch.setattr("gradfiltering.experiment.run.measure_rows", fail)


def run_to_its_end(*overrides, flags=()) -> int:
    try:
        run_train(*flags, *TINY_RUN, "logger=csv", *overrides)
    except SystemExit as ended:
        return ended.code
    return 0


def test_no_file_of_a_failed_run_holds_a_secret(failing, tmp_path, capsys):
    run = tmp_path / "run"
    folders = [f"run_dir={run}", f"hydra.run.dir={run}", "hydra.output_subdir=.hydra", f"cache.path={tmp_path / 'c'}"]
    assert run_to_its_end(*folders, *secret_options()) == 1
    shown = "".join(capsys.readouterr())
    assert SECRET not in shown and "ZeroDivisionError" in shown and "Traceback" not in shown
    assert {path.name for path in (run / ".hydra").iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}
    assert "Traceback" in (run / "run.log").read_text("utf-8")
    assert files_with_secret(run) == []


@pytest.mark.slow
@pytest.mark.parametrize("logger", ["csv", "wandb"])
def test_no_file_of_a_sweep_holds_a_secret(logger, tmp_path, capsys):
    sweep = tmp_path / "sweep"
    swept = f"+extra.hub_token={SECRET}a,{SECRET}b"
    folders = [f"hydra.sweep.dir={sweep}", f"cache.path={tmp_path / 'cache'}", "until=select", f"logger={logger}"]
    overrides = [*folders, "report.page=true", swept, *secret_options()]
    assert run_to_its_end(*overrides, flags=["-m"]) == 0
    assert SECRET not in "".join(capsys.readouterr())
    assert (sweep / "multirun.yaml").is_file() and (sweep / "sweep.json").is_file()
    assert (sweep / "1" / "config.yaml").is_file()
    assert files_with_secret(sweep) == []


def test_a_trace_shown_with_debug_holds_no_secret(failing, tmp_path, capsys):
    run_dirs = [f"run_dir={tmp_path}", f"hydra.run.dir={tmp_path}"]
    assert run_to_its_end(*run_dirs, "debug=true", *secret_options()) == 1
    shown = "".join(capsys.readouterr())
    assert SECRET not in shown and "Traceback (most recent call last)" in shown and "ZeroDivisionError" in shown


def test_folders_named_by_overrides_hold_no_secret(tmp_path, monkeypatch):
    monkeypatch.setattr("gradfiltering.config.launch.run_task", lambda cfg: None)
    monkeypatch.setattr("gradfiltering.config.sweep_callback.SweepTable.on_multirun_end", lambda *_, **__: None)
    subfolder = "hydra.sweep.subdir='job_${hydra.job.override_dirname}'"
    run_train("-m", f"hydra.sweep.dir={tmp_path}", subfolder, "run_dir=${hydra:runtime.output_dir}",
              "seed=0,1", *secret_options()[:4])  # fmt: skip
    names = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert len(names) == 2 and "seed=0" in names[0] and "seed=1" in names[1] and SECRET not in "".join(names)


def test_an_error_of_composition_shows_no_secret(tmp_path, capsys):
    assert run_to_its_end(f"judge.nothing_token={SECRET}", f"hydra.run.dir={tmp_path}") == 1
    assert run_to_its_end(f"+a.token={SECRET}(", f"hydra.run.dir={tmp_path}") == 1
    assert SECRET not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("api_key", True), ("apiKey", True), ("OPENAI_API_KEY", True), ("X-Auth-Token", True), ("headers", True),
        ("Authorization", True), ("session_cookie", True), ("hf_token", True), ("dbPassword", True), ("pwd", True),
        ("credentials", True), ("secret_access_key", True), ("logger.wandb.settings.api_key", True),
        ("max_tokens", False), ("tokenizer", False), ("key_variable", False), ("password_variable", False),
        ("header_variables", False), ("token_limit_name", False), ("batch.tokens", False),
        ("micro_batch_tokens", False),         ("monkey", False), ("author", False), ("keep_below", False),
    ],
)  # fmt: skip
def test_names_of_secrets(name, secret):
    assert names_secret(name) is secret


@pytest.mark.parametrize(
    ("override", "masked"),
    [
        ("+a.token=x", "+a.token=***"),
        ("a.token=x,y", "a.token=***"),
        ("++judge.request={api_key: abc, seed: 1}", "++judge.request={api_key: ***, seed: 1}"),
        ("judge.request={headers: {X: 1}}", "judge.request={headers: ***}"),
        ("+judge.request.headers.X-Team=blue", "+judge.request.headers.X-Team=***"),
        ("+a.credentials.user=ann,bob", "+a.credentials.user=***"),
        ("+extra={deep: [{auth_token: abc}, plain]}", "+extra={deep: [{auth_token: ***}, plain]}"),
        ("+extra=[{a: {b: {api_key: 'abc', c: 1}}}, 2]", "+extra=[{a: {b: {api_key: ***, c: 1}}}, 2]"),
        ("+extra={a: {tokens: 5}}", "+extra={a: {tokens: 5}}"),
        ("data.path=https://me:pw@host/x", "data.path=https://***@host/x"),
        ("data.path=https://me:p?@w@host/x", "data.path=https://***@host/x"),
        ("data.path=https://host/x?token=abc&n=1", "data.path=https://host/x?token=***&n=1"),
        ("batch.tokens=512", "batch.tokens=512"),
        ("seed=1", "seed=1"),
    ],
)
def test_overrides_are_masked_as_a_whole_and_within(override, masked):
    assert mask_override(override) == masked


def test_remembered_values_are_masked_in_any_text():
    remember_secrets({"judge": {"headers": {"X-Team": "team blue"}, "numbers": [{"pin_password": 987654}]}})
    assert mask_text("sent team blue, team%20blue and 987654") == "sent ***, *** and ***"
    assert mask_secrets([{"url": "ftp://a:b@c"}, 3, None]) == [{"url": "ftp://***@c"}, 3, None]
