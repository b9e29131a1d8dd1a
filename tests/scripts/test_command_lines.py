"""Every script has a command line that it explains, and names no option that it does not have."""

import importlib
import re
import shlex

import pytest

from tests.support.pipeline import ROOT

WITHOUT_COMMAND_LINE = {"demo", "docs_site", "file_rows", "measured_proxy", "options_reference", "peer_gradients"}
SCRIPTS = sorted(file.stem for file in (ROOT / "scripts").glob("*.py"))


@pytest.mark.parametrize("name", sorted(set(SCRIPTS) - WITHOUT_COMMAND_LINE))
def test_help_explains_the_options_of_the_docstring(name, capsys):
    script = importlib.import_module(f"scripts.{name}")
    with pytest.raises(SystemExit) as ended:
        script.main(["--help"])
    assert ended.value.code == 0
    explained = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    commands = re.findall(rf"python scripts/{name}\.py (.*(?:\\\n.*)*)", script.__doc__)
    assert commands, "the docstring says how to run it"
    for command in commands:
        own_words = shlex.split(command.partition(" -- ")[0].replace("[", " ").replace("]", " "), comments=True)
        named = {word.partition("=")[0] for word in own_words if word.startswith("--")}
        assert named <= explained, command


def test_every_script_is_run_by_a_test():
    sources = "".join(file.read_text("utf-8") for file in (ROOT / "tests").rglob("*.py"))
    imported = set(re.findall(r"\bscripts\.(\w+)", sources)) | set(re.findall(r"^import (\w+)", sources, re.MULTILINE))
    for names in re.findall(r"^from scripts import ([\w, ]+)", sources, re.MULTILINE):
        imported |= set(names.split(", "))
    shared_modules = {"file_rows", "measured_proxy", "peer_gradients"}
    assert set(SCRIPTS) - imported - shared_modules == {"chat_server"}, "tests/judging/chat.py starts the server"
