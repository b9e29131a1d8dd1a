"""The table of bad inputs: each ends with exit code 1 and a message of cause and remedy, without a stack trace."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from gradfiltering.errors import plain_words
from gradfiltering.requests import EpochLog
from gradfiltering.runs.files import atomic_path, write_json
from gradfiltering.runs.gradient_log import GradientLogReader
from tests.support.disk import files_up_to
from tests.support.gradient_logs import write_epoch
from tests.support.pipeline import SMALL_MODELS, SMALL_RUN, SMALL_TASKS, TINY_MODELS, run_train, summary, tiny_gpt2

GOOD = '{"instruction": "a", "input": "", "output": "b"}\n'
TALK = '{"messages": [{"role": "%s", "content": "a"}]}\n'
PACKED = gzip.compress(GOOD.encode() * 99, mtime=0)  # a time would make names of tests differ by the second


def parquet(**columns):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"instruction": ["a"], "output": ["b"], **columns}), sink)
    return sink.getvalue().to_pybytes()


# name of a file: (its content, further options, what the message must hold beside the file's name)
FILES = {
    "no file": ("none.jsonl", None, [], ["none.jsonl", "no such file", "data.path="]),
    "wrong column": ("rows.jsonl", '{"a": 1}\n', [], ["no column 'instruction'", "it has: a", "data.columns.output="]),
    "named column": ("rows.jsonl", GOOD, ["data.columns.output=answer"], ["no column 'answer'", "columns.output="]),
    "empty file": ("rows.jsonl", "", [], ["rows.jsonl is empty", "at least one row"]),
    "header only": ("rows.csv", "instruction,output\n", [], ["rows.csv is empty", "at least one row"]),
    "broken line": ("rows.jsonl", GOOD + "{oops\n", [], ["rows.jsonl, line 2", "not valid JSON", "Mend the line"]),
    "broken array": ("rows.json", '[{"a": 1', [], ["rows.json", "not valid JSON", "Mend it"]),
    "no object": ("rows.jsonl", GOOD + "7\n", [], ["rows.jsonl, line 2, row 1", "7 is no row", "give objects"]),
    "latin-1": ("rows.jsonl", GOOD.encode() + b'{"a": "\xe9"}', [], ["line 2", "not UTF-8", "iconv -f LATIN1"]),
    "utf-16": ("rows.jsonl", GOOD.encode("utf-16"), [], ["rows.jsonl is UTF-16", "iconv -f UTF-16"]),
    "wrong type": ("rows.jsonl", GOOD + '{"instruction": "a", "output": 7}', [],
        ["line 2, row 1: column 'output' holds 7, not text", "mend the rows"]),
    "cut gz": ("rows.jsonl.gz", PACKED[:-9], [], ["rows.jsonl.gz cannot be read", "unpack it by hand (gzip)"]),
    "no gz": ("rows.jsonl.gz", GOOD, [], ["rows.jsonl.gz cannot be read", "unpack it by hand (gzip)"]),
    "no zst": ("rows.jsonl.zst", GOOD, [], ["rows.jsonl.zst cannot be read", "unpack it by hand (zstd)"]),
    "short csv line": ("rows.csv", "instruction,output\na,b\nc\n", [], ["line 3, has 1 cells", "mend the line"]),
    "open quote": ("rows.csv", 'instruction,output\na,"b\n', [], ["line 2", "mend its double quotes"]),
    "no parquet": ("rows.parquet", "PAR1 nothing", [], ["no readable parquet file", "write it again"]),
    "bytes": ("rows.parquet", parquet(output=[b"x"]), [], ["column 'output' holds binary", "cast it to text"]),
    "unknown type": ("rows.txt", "a", [], ["cannot read '.txt' files", "give one of .json"]),
    "folder without data": (".", None, [], ["no file of a known type", "files of .json"]),
    "no assistant": ("rows.jsonl", TALK % "user", [], ["none of the 1 rows", "1 × no assistant turn", "data.columns"]),
    "unknown role": ("rows.jsonl", TALK % "boss", [], ["row 0", "role 'boss' is unknown; the roles are", "mend"]),
    "no response": ("rows.jsonl", GOOD.replace('"b"', '" "'), [], ["none of the 1 rows", "1 × empty response"]),
    "no response left": ("rows.jsonl", GOOD, ["proxy.max_tokens=1"],
        ["1 × no response token left in max_tokens", "allow longer examples"]),
    "held out from nowhere": ("rows.jsonl", GOOD, ["data.heldout.path=gone.jsonl"], ["no such file", "gone.jsonl"]),
    "held out of no row": ("rows.jsonl", GOOD, ["data.heldout.share=0.1"], ["of 1 rows is no row", "larger share"]),
    "prompts of no held-out row": ("rows.jsonl", GOOD, ["until=report"],
        ["prompts from held-out rows need held-out rows", "hold some out"]),
    "unknown schema": ("rows.jsonl", GOOD, ["data.schema=chatml"], ["data.schema=chatml", "give one of: auto"]),
    "fraction of no row": ("rows.jsonl", GOOD, ["selector.fraction=0.1"],
        ["of 1 rows is no row; give a larger fraction (selector.fraction=0.1)"]),
}  # fmt: skip

MIXTURE = "+data.sources={a: {path: rows.jsonl, %s}}"
# name: (options, what the message must hold)
OPTIONS = {
    "unknown option": (["ensemble.q=1"], ["no option ensemble.q", "batch_size", "clip_norm"]),
    "option of another choice": (["proxy=smollm2", "proxy.model=gpt2"],
        ["no option proxy.model", "it is an option of proxy=gpt2, "]),
    "required option of another choice": (["data=tasks", "data.path=x"],
        ["no option data.path", "it is an option of data=file, data=hub"]),
    "option of no choice": (["ensemble.lora.ranks=4"], ["no option ensemble.lora.ranks", "alpha", "target_modules"]),
    "unknown group": (["nonsense=3"], ["no option nonsense", "ensemble", "scorer"]),
    "unknown option of a group": (["scorer=best"], ["scorer/best", "raw_drop", "gsnr"]),
    "not a value": (["scorer=[a"], ["[a"]),
    "null for a group": (["scorer=null"], ["scorer=null", "name of one of its options", "gsnr, gsnr_rank"]),
    "number for a group": (["proxy=7"], ["proxy=7", "name of one of its options: gpt2, qwen2_5_0_5b, smollm2"]),
    "mapping for a group": (["selector={a: 1}"], ["selector={a: 1}", "name of one of its options", "top"]),
    "null among choices": (["-m", "scorer=gsnr,null"], ["scorer=gsnr,null", "name of one of its options"]),
    "address without quotes": (["judge.base_url=http://a/v1?b=c"], ["judge.base_url=http://a/v1?b=", "into quotes"]),
    "no cache": (["cache.path=null"], ["cache.path=null: give the name of a folder"]),
    "null for a number": (["seed=null"], ["seed=null: give a non-negative whole number"]),
    "truth for a number": (["selector.fraction=true"], ["selector.fraction=true: give a number in (0, 1]"]),
    "number in quotes": (["selector.fraction='0.5'"], ["selector.fraction='0.5': give a number in (0, 1]"]),
    "no value at all": (["scorer"], ["scorer cannot be read", "give it as name=value"]),
    "no scorer": (["~scorer"], ["scorer is missing; a run needs it"]),
    "missing value": (["data=file"], ["data.path is required", "data.path=VALUE"]),
    "text for a number": (["data.limit=abc"], ["data.limit=abc", "positive whole number or null"]),
    "half a member": (["ensemble.m=2.5"], ["ensemble.m=2.5", "a positive whole number or auto"]),
    "no number": (["ensemble.lr="], ["ensemble.lr=", "a positive number"]),
    "no member": (["ensemble.m=0"], ["ensemble.m=0", "a positive whole number or auto"]),
    "unknown word": (["ensemble.collect=sometimes"], ["ensemble.collect=sometimes", "snapshot, online"]),
    "unknown stage": (["until=selection"], ["until=selection: give one of", "proxy, score, select"]),
    "no row": (["data=file", "data.path=x", "data.limit=0"], ["data.limit=0", "a positive whole number or null"]),
    "share of one": (["data=file", "data.path=x", "data.heldout.share=1.0"], ["data.heldout.share=1.0", "[0, 1)"]),
    "fraction over 1": (["selector.fraction=1.5"], ["selector.fraction=1.5", "(0, 1]"]),
    "fraction 0": (["selector.fraction=0"], ["selector.fraction=0", "(0, 1]"]),
    "fraction and count": (["selector.count=5"], ["selector.count=5", "exactly one", "fraction of null"]),
    "more rows than there are": (["selector.fraction=null", "selector.count=81"],
        ["81 rows are more than the dataset's 80; give a smaller count (selector.count=81)"]),
    "late before early": (["epochs.early=2", "epochs.late=1"], ["epochs.early=2, epochs.late=1", "must come before"]),
    "variance of one": (["ensemble.m=1"], ["needs the variance over members", "raw_drop", "ensemble.m=1"]),
    "snapshots that would move": (["ensemble=snapshots", "ensemble.m=auto"], ["ensemble.m=auto", "LoRA ensemble"]),
    "nothing to validate on": (["scorer=less", "data.heldout_rows=0"],
        ["nothing is held out", "(scorer.validation, scorer.task=auto)"]),
    "no validation file": (["scorer=less", "scorer.validation=gone.jsonl"],
        ["gone.jsonl cannot be read as rows", "no such file", "scorer.validation=gone.jsonl"]),
    "no file of scores": (["scorer=from_file", "scorer.path=gone.jsonl"],
        ["the file of scores gone.jsonl cannot be read", "no such file", "scorer.path=gone.jsonl"]),
    "no such task": (["scorer=less", "scorer.task=skill"],
        ["no field 'skill'", "or none for one task", "scorer.task=skill"]),
    "checkpoint before training": (["scorer=less", "epochs.early=0"],
        ["scorer.checkpoints[0]=0", "a positive whole"]),
    "members of no ensemble": (["scorer=less", "scorer.members=9"], ["ensemble has 5 (scorer.members=9)"]),
    "influence of no trained member": (["scorer=less", "ensemble=mc_dropout"],
        ["gradients of 1 members", "choose a LoRA or bootstrap ensemble"]),
    "score for a target that leads": (["scorer=gsnr", "target.data=lead"],
        ["scorer=gsnr has no effect with target.data=lead", "scorer@target.lead.difficulty=", "target.data=subset"]),
    "selector for a target that leads": (["method=lead", "selector=k_center"],
        ["selector=k_center has no effect with target.data=lead", "selector.fraction="]),
    "unknown baseline": (["judge.against=[best]"], ["unknown baselines ['best']", "choose among full, random"]),
    "more rows than the tasks hold": (["data.rows=6000"], ["6000 rows", "choose a number in this range"]),
    "mixture of nothing": (["data=mixture"], ["a mixture needs sources", "data.sources"]),
    "bad weight": (["data=mixture", MIXTURE % "weight: -1"], ["data.sources.a.weight=-1", "a positive number or null"]),
    "no proxy": (["proxy=gpt2", "proxy.model=nowhere"], ["cannot load nowhere", "a folder written by save_pretrained"]),
    "no target": (["target=llama2_7b", "target.model=./gone"], ["cannot load ./gone", "a folder written by"]),
    "gated target": (["target=llama2_7b"], ["cannot load meta-llama/Llama-2-7b-hf", "hf auth login", "HF_TOKEN"]),
    "no text to train on": (["proxy.base_model.text=[gone.txt]"], ["gone.txt"]),
    "no prompts": (["eval=vicuna", "eval.path=nowhere"], ["nowhere", "no such file"]),
    "no reviews": (["judge=replay", "judge.files=[gone.json]"], ["gone.json", "no such file"]),
}  # fmt: skip


def refused(capsys, tmp_path, *options):
    """The message of a run that ends with exit code 1."""
    with pytest.raises(SystemExit) as stopped:
        run_train(*SMALL_RUN, "logger=none", f"hydra.run.dir={tmp_path / 'run'}", *options)
    error = " ".join(capsys.readouterr().err.split())
    assert stopped.value.code == 1 and "Traceback" not in error, error
    return error


def assert_holds(error, words):
    for word in words:
        assert word in error, f"{word!r} is not in: {error}"


@pytest.fixture(autouse=True)
def cache_of_the_test(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("case", FILES)
def test_bad_file(case, cache, tmp_path, capsys):
    name, content, options, words = FILES[case]
    folder = tmp_path / "data"
    folder.mkdir()
    if content is not None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    rows = ["data=file", f"data.path={folder / name}"]
    always = [*TINY_MODELS, *SMALL_MODELS, cache, *rows, "scorer=random", "selector.fraction=1"]
    assert_holds(refused(capsys, tmp_path, *always, *options), words)


@pytest.mark.parametrize("case", OPTIONS)
def test_bad_option(case, tmp_path, capsys, monkeypatch):
    """Nothing is trained before the message: no run gets as far as its store."""
    options, words = OPTIONS[case]
    monkeypatch.chdir(tmp_path)
    sizes = [] if any(one.startswith(("data=", "data.rows")) for one in options) else SMALL_TASKS
    assert_holds(refused(capsys, tmp_path, *sizes, f"cache.path={tmp_path / 'cache'}", *options), words)
    assert not (tmp_path / "cache").exists(), "a model was made before the error showed"


@pytest.mark.parametrize("said", ["401 Client Error: gated repo", "You are trying to access a gated repo."])
def test_a_gated_model_says_how_to_log_in_before_anything_is_trained(said, tmp_path, capsys, monkeypatch):
    def gated(*args, **options):
        raise OSError(said)

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", gated)
    error = refused(capsys, tmp_path, *SMALL_TASKS, f"cache.path={tmp_path / 'cache'}", "target=llama2_7b")
    assert_holds(error, ["meta-llama/Llama-2-7b-hf", said, "ask for access", "hf auth login", "HF_TOKEN"])
    assert not (tmp_path / "cache").exists()


def test_what_judging_may_cost_is_refused_before_anything_is_trained(tmp_path, capsys):
    run, cache = tmp_path / "run", tmp_path / "cache"
    options = [
        "judge=openai", "judge.key_variable=null", "judge.prices.input_million=10", "judge.prices.output_million=30",
    ]  # fmt: skip
    with pytest.raises(SystemExit):
        run_train(f"run_dir={run}", f"cache.path={cache}", *SMALL_TASKS, *SMALL_RUN, *options, "judge.max_cost=0.5")
    told = " ".join(capsys.readouterr().err.split())
    assert "judging may cost 0.8" in told and "two answers of 8 tokens" in told
    assert "max_cost is 0.50" in told and "(judge.max_cost=0.5)" in told
    assert {stage["name"] for stage in summary(run)["stages"]} <= {"data"} and not list(cache.rglob("*.safetensors")), (
        "something was trained before"
    )


def test_a_vocabulary_that_does_not_fit_the_model(tmp_path, capsys):
    model, other = tiny_gpt2(tmp_path / "small"), tiny_gpt2(tmp_path / "large", 400)
    options = ["proxy=gpt2", f"proxy.model={model}", f"proxy.base_model.tokenizer={other}", "until=proxy"]
    error = refused(capsys, tmp_path, *SMALL_TASKS, f"cache.path={tmp_path / 'cache'}", *options)
    assert_holds(error, ["holds the token", f"{model} embeds only 320", "tokenizer the model was trained with"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["ensemble.lr=1e38", "until=select", "ensemble.m=2"], ["not finite", "members [", "rows [", "ensemble.lr"]),
        (["scorer=random", "target.tuning.lr=1e30", "target.tuning.clip_norm=null"],
            ["target full: the loss is", "at step", "rows [", "lower the learning rate", "target.tuning.lr="]),
        (["scorer=random", "generation.max_new_tokens=256"], ["context holds 256 tokens", "choose at most 128"]),
    ],
    ids=["NaN of the proxy", "NaN of the target", "no room for a prompt in the context"],
)  # fmt: skip
def test_what_shows_only_while_running(options, words, cache, tmp_path, capsys):
    assert_holds(refused(capsys, tmp_path, *SMALL_MODELS, *SMALL_TASKS, cache, *options), words)


def test_a_full_disk_ends_a_run_in_plain_words(cache, tmp_path, capsys):
    options = [*SMALL_MODELS, "data.rows=400", "data.heldout_rows=0", "selector=random", "until=select"]
    with files_up_to(10_000):
        error = refused(capsys, tmp_path, *options, cache)
    assert_holds(error, ["cannot write", "File too large", "Free some space", "run_dir=", "cache.path="])
    assert not list((tmp_path / "run").glob("*.part")), "half a file stayed behind"


@pytest.mark.parametrize("option", ["run_dir", "cache.path"])
def test_a_file_in_the_way_of_a_folder_is_named(option, tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    folders = {"run_dir": tmp_path / "run", "cache.path": tmp_path / "cache", option: tmp_path / "file"}
    with pytest.raises(SystemExit) as ended:
        run_train(*(f"{name}={folder}" for name, folder in folders.items()), *SMALL_MODELS, *SMALL_TASKS)
    assert ended.value.code == 1
    assert_holds(" ".join(capsys.readouterr().err.split()), [str(tmp_path / "file"), "Not a directory", "cache.path="])


WRITERS = {
    "text": lambda path: path.write_text("x" * 99999),
    "json": lambda path: write_json(path, ["x" * 99999]),
    "parquet": lambda path: pq.write_table(pa.table({"a": np.random.default_rng(0).random(9999)}), path),
    "safetensors": lambda path: save_file({"a": torch.zeros(99999)}, path),
    "torch": lambda path: torch.save(torch.zeros(99999), path),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("named", [True, False], ids=["where a result is written", "anywhere else"])
def test_a_full_disk_is_told_whoever_was_writing(writer, named, tmp_path, capsys):
    place = tmp_path / "result"
    with pytest.raises(SystemExit) as stopped, plain_words(), files_up_to(4000):
        if named:
            with atomic_path(place) as part:
                WRITERS[writer](part)
        else:
            WRITERS[writer](place)
    error = " ".join(capsys.readouterr().err.split())
    assert stopped.value.code == 1 and "Traceback" not in error
    assert_holds(error, ["ree some space", "run_dir=", "cache.path=", *([str(place)] if named else [])])
    assert not named or not list(tmp_path.iterdir()), "half a file stayed behind"


@pytest.mark.parametrize(
    "take",
    [lambda: np.zeros(10**15), lambda: torch.zeros(10**15), lambda: b"x" * 10**15],
    ids=["numpy", "torch", "python"],
)
def test_too_little_memory_names_the_options_that_need_less(take, capsys):
    with pytest.raises(SystemExit) as stopped, plain_words():
        take()
    error = " ".join(capsys.readouterr().err.split())
    assert stopped.value.code == 1
    assert_holds(error, ["memory ran out", "Lower batch.tokens", "target.tuning.micro_batch_tokens", "ensemble.m"])


def test_a_full_gpu_names_the_same_options(capsys):
    with pytest.raises(SystemExit), plain_words():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    assert_holds(capsys.readouterr().err, ["memory ran out", "20.00 GiB", "batch.tokens"])


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda folder: GradientLogReader(folder / "none"), ["no gradient log at", "until=proxy"]),
        (lambda folder: GradientLogReader(folder).epoch(3), ["no epoch 3 for member 0", "[1]", "epochs.early"]),
        (lambda folder: GradientLogReader(folder).epoch(2), ["no epoch 2 for member 0", "choose epochs"]),
    ],
    ids=["no log", "no such epoch", "an epoch that one member lacks"],
)
def test_what_a_gradient_log_lacks(ask, words, tmp_path, capsys):
    ids, norms = np.arange(3), np.ones((1, 3))
    log = EpochLog(ids, norms, norms, np.ones(3, dtype=np.int32))
    for member, epoch in ((0, 1), (1, 1), (1, 2)):
        write_epoch(tmp_path, log, [member], epoch)
    with pytest.raises(SystemExit) as stopped, plain_words():
        ask(tmp_path)
    assert stopped.value.code == 1
    assert_holds(" ".join(capsys.readouterr().err.split()), words)


def test_debug_shows_the_stack_trace(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_train("until=selection", "debug=true", f"hydra.run.dir={tmp_path}")
    assert "UserError: until=selection: give one of" in capsys.readouterr().err
    with pytest.raises(SystemExit), plain_words(debug=True):
        np.zeros(10**15)
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_budget_that_the_rows_cannot_fill_is_warned_of(cache, tmp_path):
    rows = [{"instruction": f"Say {n}.", "output": f"{n}" if n % 4 else ""} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    run_train(
        *TINY_MODELS, *SMALL_MODELS, *SMALL_RUN, cache, "logger=none", "data=file",
        f"data.path={tmp_path / 'rows.jsonl'}",
        "scorer=random", "selector.fraction=0.9", "until=select", f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    found = json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))
    assert found["selection"]["selected"] == 30
    assert any("is 36 rows and 30 were selected" in warning for warning in found["diagnostics"]["warnings"])
