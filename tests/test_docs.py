"""README and documentation: links resolve, commands compose, code runs, and nothing that exists is left out."""

import functools
import importlib
import json
import re
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import hydra.core.override_parser.overrides_parser as overrides_parser
import pytest
import yaml
from click import Context
from hydra import compose, initialize_config_dir
from typer.main import get_command

import gradfiltering
from gradfiltering import api
from gradfiltering.cli.commands import app
from gradfiltering.config.composition import composition_explained, spell_out
from gradfiltering.diagnostics.failures import DOUBTING_DIAGNOSTICS, FORBIDDING_DIAGNOSTICS
from tests.support.documentation import (
    GENERATED_PAGES,
    PAGES,
    drop_assignments,
    find_overrides,
    page_name,
    read_anchors,
    read_blocks,
    read_commands,
    read_links,
)
from tests.support.pipeline import ROOT, SMALL_MODELS, SMALL_RUN, TINY_MODELS

DOCS = ROOT / "docs"
TROUBLESHOOTING = (DOCS / "troubleshooting.md").read_text("utf-8")
OTHER_PROGRAMS = {"git", "cd", "time", "uv", "docker", "wandb", "hf", "tensorboard", "pytest", "source"}
by_page = pytest.mark.parametrize("page", PAGES, ids=page_name)
pages_with_commands = [page for page in PAGES if read_commands(page)]


@by_page
def test_every_link_and_anchor_resolves(page):
    for target in read_links(page):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            assert re.match(r"https://[\w.-]+\.[a-z]+(/|$)", target), target
            continue
        linked = page if not path else (page.parent / path).resolve()
        if linked in GENERATED_PAGES:
            continue
        assert linked.exists(), f"{page_name(page)} links to {target}, which is not there"
        assert not anchor or anchor in read_anchors(linked), f"{page_name(page)} links to {target}: no such heading"


def test_a_missing_anchor_would_be_seen():
    assert "diagnostics-by-name" in read_anchors(DOCS / "troubleshooting.md")
    assert "no-such-heading" not in read_anchors(DOCS / "troubleshooting.md")


def compose_all(overrides: list[str]) -> int:
    """Compose every value of a sweep at least once, so that each name and option must exist; return how often."""
    given = [override for override in overrides if override not in ("-m", "--multirun")]
    parser = overrides_parser.OverridesParser.create()
    values = []
    for override in given:
        parsed = parser.parse_override(override)
        is_sweep = parsed.is_sweep_override()
        values.append(
            [f"{parsed.input_line.partition('=')[0]}={value}" for value in parsed.sweep_string_iterator()]
            if is_sweep
            else [override]
        )
    composition_count = max(map(len, values), default=1)
    for index in range(composition_count):
        chosen = [choices[min(index, len(choices) - 1)] for choices in values]
        with composition_explained(chosen):
            compose("train", spell_out(chosen), return_hydra_config=True)
    return composition_count


@pytest.mark.parametrize(
    "page",
    [page if page.name == "README.md" else pytest.param(page, marks=pytest.mark.slow) for page in pages_with_commands],
    ids=page_name,
)
def test_every_command_that_runs_composes(page):
    found = [overrides for words in read_commands(page) if (overrides := find_overrides(words)) is not None]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for overrides in found:
            assert compose_all([override for override in overrides if override not in ("--cfg", "job")]) > 0, overrides


def test_an_unknown_option_would_be_seen():
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"), pytest.raises(Exception, match="wings"):
        compose_all(["ensemble.wings=2"])


@pytest.mark.parametrize("page", pages_with_commands, ids=page_name)
def test_other_commands_name_what_exists(page):
    makefile = (ROOT / "Makefile").read_text("utf-8")
    extras = (ROOT / "pyproject.toml").read_text("utf-8").split("[project.optional-dependencies]")[1].split("\n[")[0]
    for words in read_commands(page):
        words = drop_assignments(words)
        if not words or find_overrides(words) is not None:
            continue
        text = " ".join(words)
        for extra in re.findall(r"gradfiltering\[([\w,]+)\]", text):
            assert all(f"\n{name} = [" in extras for name in extra.split(",")), f"no extra in {text}"
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), text
        elif words[0] == "gradfiltering":
            parse_command(words[1:])
        elif words[0].endswith("python") and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), text
            named = {word.partition("=")[0] for word in words[2:] if word.startswith("--") and word != "--"}
            assert not named or named <= explained_options(Path(words[1]).stem), text
        elif words[0] not in OTHER_PROGRAMS:
            assert words[0] == "pip" or words[:3] in (["python", "-m", "pip"], ["python", "-m", "pytest"]), text


@functools.cache
def explained_options(script_name: str) -> set[str]:
    """Read the options of a script from its help."""
    script = importlib.import_module(f"scripts.{script_name}")
    with redirect_stdout(StringIO()) as printed, pytest.raises(SystemExit):
        script.main(["--help"])
    return set(re.findall(r"--[\w-]+", printed.getvalue()))


def parse_command(words: list[str]) -> None:
    """Read the words of `gradfiltering …` as the program would, without running anything."""
    command = get_command(app)
    context = Context(command, info_name="gradfiltering")
    while hasattr(command, "commands"):
        assert words[0] in command.commands, words
        command, words = command.commands[words[0]], words[1:]
        context = Context(command, parent=context, info_name=command.name)
    _, left_over, _ = command.make_parser(context).parse_args(args=list(words))
    assert not [word for word in left_over if word.startswith("-")], words


def python_blocks():
    for page in PAGES:
        for position, block in enumerate(block for block in read_blocks(page) if block.language == "python"):
            if block.is_run:
                yield pytest.param(block.code, id=f"{page_name(page)}-{position}")


@pytest.mark.slow
@pytest.mark.parametrize("code", python_blocks())
def test_every_block_of_python_runs(code, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "my.jsonl")
    small = [*SMALL_MODELS, *SMALL_RUN, cache, "ensemble.m=2", "report.page=true"]
    options = dict(override.split("=", 1) for override in small if not override.startswith("target."))
    options = {name: yaml.safe_load(value) for name, value in options.items()}

    def select_rows(rows, proxy="smollm2", **given):
        return api.select_rows(rows, proxy="tiny", **given, **options)

    def run_experiment(overrides):
        return api.run_experiment([*overrides, *TINY_MODELS, *small, "logger=none", f"run_dir={tmp_path / 'run'}"])

    monkeypatch.setattr(gradfiltering, "select_rows", functools.wraps(api.select_rows)(select_rows), raising=False)
    monkeypatch.setattr(gradfiltering, "run_experiment", run_experiment, raising=False)
    exec(compile(code, "documentation", "exec"), {"__name__": "documentation"})
    if "report(" in code:
        assert (tmp_path / "report.html").is_file()


def write_rows(path: Path, rows: int = 60) -> None:
    lines = [{"instruction": f"Say {n}.", "input": "", "output": f"{n} it is."} for n in range(rows)]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")


@pytest.mark.parametrize("name", [*FORBIDDING_DIAGNOSTICS, *DOUBTING_DIAGNOSTICS])
def test_every_diagnostic_has_an_entry(name):
    entry = r'^`(\w+)` · "([^"]+)"\n\n\*\*Meaning\.\*\* (?:.+\n)+\n\*\*Do\.\*\* .+'
    quoted = dict(re.findall(entry, TROUBLESHOOTING, re.MULTILINE))
    assert name in quoted, f"docs/troubleshooting.md says nothing of {name}"
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "src" / "gradfiltering" / "diagnostics").glob("*.py"))
    sources += (ROOT / "src" / "gradfiltering" / "experiment" / "checks.py").read_text("utf-8")
    plain_sources = re.sub(r'"\s*f?"', "", sources)  # texts over several lines
    for part in quoted[name].split(" … "):
        assert part in plain_sources, f"no warning says {part!r}"


def test_every_diagnostic_value_is_explained():
    table = TROUBLESHOOTING.split("## Diagnostics by name")[1]
    sources = [path.read_text("utf-8") for path in (ROOT / "src" / "gradfiltering" / "diagnostics").glob("*.py")]
    names = set()
    for source in sources:
        for values in re.findall(r"values(?:: [^=]+)? = \{(.*?)\n    \}", source, re.DOTALL):
            names |= set(re.findall(r'^        "(\w+)":', values, re.MULTILINE))
        names |= set(re.findall(r'values\["(\w+)"\] =', source)) | set(re.findall(r'Diagnostics\(\{"(\w+)"', source))
    assert {"positive_drop_share", "easiness", "heldout_loss", "sources", "truth"} <= names
    assert not {name for name in names if f"`{name}`" not in table}


def test_every_public_name_is_in_the_reference_of_python():
    reference = (DOCS / "python.md").read_text("utf-8")
    documented = re.findall(r"^::: gradfiltering\.[\w.]+\.(\w+)$", reference, re.MULTILINE)
    assert sorted(documented) == sorted(gradfiltering.__all__)


def test_the_site_lists_every_page_once():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    listed = re.findall(r"([\w/]+\.md)", str(config["nav"]))
    pages = [path.relative_to(DOCS).as_posix() for path in [*DOCS.rglob("*.md"), *GENERATED_PAGES]]
    assert sorted(listed) == sorted(pages)


def test_every_word_of_the_glossary_has_one_line():
    rows = re.findall(r"^\| ([^|]+) \| (.+) \|$", (DOCS / "glossary.md").read_text("utf-8"), re.MULTILINE)[1:]
    words = [word for word, _ in rows]
    assert {"PWS", "G-SNR", "V_t", "norm", "member", "snapshot"} <= set(words)
    assert words == sorted(words, key=str.lower)
    assert all(meaning.endswith(".") and len(meaning.split()) < 45 for _, meaning in rows)


def test_the_readme_is_short():
    prose = re.sub(r"```.*?```|\|.*?\|\n", "", (ROOT / "README.md").read_text("utf-8"), flags=re.DOTALL)
    assert len(prose.split()) < 800


@pytest.mark.slow
def test_the_site_builds_and_asks_no_other_server(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|img|iframe)[^>]+src=[\"']?([^\"'\s>]+)|<link[^>]+rel=[\"']?(?:stylesheet|preconnect)[^>]+href=[\"']?([^\"'\s>]+)",
            page.read_text("utf-8"),
        )
        assert not [link for pair in loaded for link in pair if re.match(r"(https?:)?//", link)], page
    assert "select_rows" in (tmp_path / "site" / "python.html").read_text("utf-8")
    assert "ensemble.lora.init_b_std" in (tmp_path / "site" / "options.html").read_text("utf-8")
