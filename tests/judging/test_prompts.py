import json
from dataclasses import replace

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from gradfiltering.data.templates import Turn
from gradfiltering.errors import UserError
from gradfiltering.judging.prompts import (
    FilePrompts,
    HeldoutPrompts,
    PublicPrompts,
    TaskPrompts,
    is_heldout_set,
    load_prompts,
)
from gradfiltering.synthetic.task_generator import generate_rows

PUBLIC_SETS = {"wizardlm": 218, "vicuna": 80, "koala": 180, "sinstruct": 252, "lima": 300}
HELDOUT = [{"instruction": f"q{n}", "input": "", "output": f"a{n}"} for n in range(20)]


@pytest.fixture
def build(tmp_path, conf_folder):
    """Loaders as a run builds them: from the YAML files of conf/eval under a small top file."""
    top = {"defaults": [{"eval": ["tasks"]}, "_self_"], "seed": 3, "eval": {"path": None, "limit": None}}
    (tmp_path / "top.yaml").write_text(json.dumps(top))

    def make(*overrides: str):
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            config = compose("top", [*overrides, f"hydra.searchpath=[file://{conf_folder}]"])
        OmegaConf.resolve(config)
        return {name: instantiate(node) for name, node in config.eval.sets.items()}

    return make


def test_sets_are_chosen_alone_or_together(build):
    assert list(build()) == ["tasks"]
    assert list(build("eval=vicuna")) == ["vicuna"]
    assert list(build("eval=[tasks,vicuna]")) == ["tasks", "vicuna"]


def test_every_file_builds_its_loader(build, conf_folder):
    names = sorted(file.stem for file in (conf_folder / "eval").glob("*.yaml"))
    loaders = build(f"eval=[{','.join(names)}]", "eval.limit=7")
    assert sorted(loaders) == names == sorted([*PUBLIC_SETS, "tasks", "heldout", "file"])
    assert {loader.limit for loader in loaders.values()} == {7}
    assert all(loaders[name].name == name and f"/{name}_test_set.jsonl" in loaders[name].url for name in PUBLIC_SETS)


def test_public_sets_are_read_whole(build, shared_data):
    loaders = build(f"eval=[{','.join(PUBLIC_SETS)}]", f"eval.path={shared_data / 'eval'}")
    prompts = load_prompts(loaders.values(), heldout_rows=None)
    counts = {name: sum(prompt.prompt_set == name for prompt in prompts) for name in PUBLIC_SETS}
    assert counts == PUBLIC_SETS
    assert {prompt.prompt_set for prompt in prompts if prompt.reference is not None} == {"sinstruct"}
    assert {prompt.prompt_set for prompt in prompts if prompt.input} == {"sinstruct"}
    first = next(prompt for prompt in prompts if prompt.prompt_set == "vicuna")
    assert (first.prompt_id, first.instruction) == ("1", "How can I improve my time management skills?")


def test_a_single_file_and_a_limit(build, shared_data):
    path = shared_data / "eval" / "koala_test_set.jsonl"
    (loader,) = build("eval=koala", f"eval.path={path}", "eval.limit=5").values()
    assert [prompt.prompt_id for prompt in loader.load(None)] == [f"koala_{n}" for n in range(5)]


def test_the_wrong_file_is_named_with_its_fields(build, shared_data):
    path = shared_data / "eval" / "koala_test_set.jsonl"
    (loader,) = build("eval=vicuna", f"eval.path={path}").values()
    with pytest.raises(UserError, match=r"koala_test_set.jsonl, line 1: no field 'text' \(fields: id, prompt\)"):
        loader.load(None)


def test_missing_files_name_the_path(build, tmp_path):
    (loader,) = build("eval=vicuna", f"eval.path={tmp_path}").values()
    with pytest.raises(UserError, match=r"vicuna_test_set\.jsonl: no such file"):
        loader.load(None)
    with pytest.raises(UserError, match="need the path of a JSON Lines file"):
        FilePrompts(path=None, limit=None).load(None)


def test_a_download_is_read_like_the_file(monkeypatch, tmp_path):
    rows = [{"id": "a", "instruction": "Add.", "instances": [{"input": "1 2", "output": "3"}]}]
    (tmp_path / "sinstruct_test_set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    where = str(tmp_path / "sinstruct_test_set.jsonl")
    fields = ("instruction", "instances.0.input", "instances.0.output", "id", None)
    local = PublicPrompts("sinstruct", where, "unused", *fields).load(None)
    # `datasets` takes a path where it takes a URL, so this is the code that downloads, without the network.
    downloaded = PublicPrompts("sinstruct", None, where, *fields).load(None)
    assert downloaded == local
    assert (local[0].instruction, local[0].input, local[0].reference) == ("Add.", "1 2", "3")
    with pytest.raises(UserError, match=r"cannot download .*absent.jsonl.*give the path of a local copy"):
        PublicPrompts("sinstruct", None, str(tmp_path / "absent.jsonl"), *fields).load(None)


def test_tasks_are_reproducible_and_have_references():
    prompts = TaskPrompts(generate_rows, rows=30, seed=5, limit=None).load(None)
    assert prompts == TaskPrompts(generate_rows, rows=30, seed=5, limit=None).load(None)
    assert prompts[:4] == TaskPrompts(generate_rows, rows=30, seed=5, limit=4).load(None)
    assert prompts != TaskPrompts(generate_rows, rows=30, seed=6, limit=None).load(None)
    assert len(prompts) == 30 and all(prompt.reference for prompt in prompts)


def test_heldout_rows_are_drawn_by_seed():
    prompts = HeldoutPrompts(rows=6, seed=1, limit=None).load(HELDOUT)
    assert prompts == HeldoutPrompts(rows=6, seed=1, limit=None).load(HELDOUT)
    positions = [int(prompt.prompt_id) for prompt in prompts]
    assert positions == sorted(set(positions)) and len(positions) == 6
    assert all(
        prompt.instruction == f"q{p}" and prompt.reference == f"a{p}"
        for p, prompt in zip(positions, prompts, strict=True)
    )
    assert len(HeldoutPrompts(rows=None, seed=1, limit=None).load(HELDOUT)) == len(HELDOUT)
    with pytest.raises(UserError, match="there are none"):
        HeldoutPrompts(rows=6, seed=1, limit=None).load(None)


def test_held_out_rows_of_several_sources_are_a_set_each():
    rows = [{**row, "source": ["code", "chat"][index % 2]} for index, row in enumerate(HELDOUT)]
    prompts = HeldoutPrompts(rows=None, seed=1, limit=None).load(rows)
    assert [prompt.prompt_set for prompt in prompts[:3]] == ["heldout_code", "heldout_chat", "heldout_code"]
    plain = HeldoutPrompts(rows=None, seed=1, limit=None).load(HELDOUT)
    assert [replace(prompt, prompt_set="heldout") for prompt in prompts] == plain
    assert {is_heldout_set(name) for name in ("heldout", "heldout_code")} == {True} and not is_heldout_set("vicuna")
    (only_set,) = {prompt.prompt_set for prompt in HeldoutPrompts(4, 1, None).load([r | {"source": "a"} for r in rows])}
    assert only_set == "heldout", "one source needs no name"
    many = [{**row, "source": str(index % 13)} for index, row in enumerate(rows * 3)]
    assert {prompt.prompt_set for prompt in HeldoutPrompts(None, 1, None).load(many)} == {"heldout"}


def test_own_file(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(
        '{"instruction": "Add.", "input": "1 2", "output": "3"}\n\n{"prompt": "Hello?", "id": 7}\n'
        '{"prompt": "Bye?", "reference": "", "id": null}\n'
    )
    prompts = FilePrompts(str(path), None).load(None)
    assert [(p.prompt_id, p.instruction, p.input, p.reference) for p in prompts] == [
        ("0", "Add.", "1 2", "3"),
        ("7", "Hello?", "", None),
        ("2", "Bye?", "", ""),
    ]
    assert prompts[0].question == "Add.\n\n1 2" and prompts[1].question == "Hello?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no prompts"),
        ("{", "line 1, is not valid JSON"),
        ("[1]", "row 0: 1 is no row"),
        ('{"question": "Hello?"}', "line 1: has neither instruction nor prompt (fields: question)"),
        ('{"prompt": "a", "instruction": "b"}', "line 1: has instruction and prompt"),
        ('{"prompt": "a", "output": "b", "reference": "c"}', "line 1: has both output and reference"),
        ('{"prompt": "  "}', "line 1: prompt is empty"),
        ('{"prompt": 3}', "line 1: prompt is 3"),
        ('{"prompt": "a", "id": 1}\n{"prompt": "b", "id": 1}', "the id '1' stands on two lines"),
    ],
)
def test_a_bad_own_file_is_named(tmp_path, text, message):
    path = tmp_path / "mine.jsonl"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        FilePrompts(str(path), None).load(None)
    assert str(path) in str(error.value) and message in str(error.value)


def test_a_held_out_system_turn_stays_one_and_the_judge_sees_it():
    rows = [{"instruction": "One?", "input": "", "output": "right", "system": "Be kind."}]
    (prompt,) = HeldoutPrompts(rows=None, seed=0, limit=None).load(rows)
    assert prompt.system == "Be kind." and prompt.instruction == "One?"
    assert prompt.question == "Be kind.\n\nOne?" and prompt.turn == Turn("One?", "", "", "Be kind.")
