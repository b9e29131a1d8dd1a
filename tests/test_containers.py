"""Containers and the workflow: they are not built here, so what they name is held against the checkout."""

import json
import re

import pytest
import yaml

from tests.support.pipeline import ROOT

IMAGES = sorted((ROOT / "docker").glob("*.Dockerfile"))


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.stem)
def test_an_image_copies_what_exists_and_installs_known_extras(image):
    text = image.read_text("utf-8").replace("\\\n", " ")
    copied = [name for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE) for name in line.split()[:-1]]
    assert {"pyproject.toml", "setup.py", "README.md", "LICENSE", "conf", "src", "requirements.lock"} == set(copied)
    assert all((ROOT / name).exists() for name in copied)
    ignored = (ROOT / ".dockerignore").read_text("utf-8").split()
    assert not set(copied) & set(ignored)
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    for extra in re.search(r"/opt/gradfiltering\[([\w,]+)\]", text)[1].split(","):
        assert f"\n{extra} = [" in project
    locked = (ROOT / "requirements.lock").read_text("utf-8")
    for pattern in re.findall(r"grep '(\^[\w-]+==)'", text):
        assert re.search(pattern, locked, re.MULTILINE), pattern
    assert 'ENTRYPOINT ["gradfiltering"]' in text and text.count("FROM ") == 1


def test_both_images_are_there():
    assert [path.stem for path in IMAGES] == ["cpu", "cuda"]


def test_the_container_of_the_editor_names_its_image():
    folder = ROOT / ".devcontainer"
    container = json.loads((folder / "devcontainer.json").read_text("utf-8"))
    assert (folder / container["build"]["dockerfile"]).is_file()
    goal = container["postCreateCommand"].split()[1]
    assert re.search(rf"^{goal}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)


def test_the_workflow_runs_the_same_script_as_everywhere():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "check.yml").read_text("utf-8"))
    assert set(workflow) == {"name", True, "permissions", "concurrency", "jobs"}, "YAML reads the key `on` as true"
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert commands == [".ci/run", "make docs"]
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111 and "make test" in script.read_text("utf-8")
    for job in workflow["jobs"].values():
        assert all(set(step) <= {"uses", "with", "run"} for step in job["steps"]) and job["timeout-minutes"] <= 60
