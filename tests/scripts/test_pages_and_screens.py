"""What is shown: recorded screens, a page in a browser, and hooks of the documentation site."""

import json
import subprocess
import sys

import pytest
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import PluginCollection
from mkdocs.structure.files import Files

from gradfiltering.reports.page.run_page import write_page
from scripts import bench_page, docs_site, record_screen
from tests.judging.browser import CHROMIUM
from tests.reports.page.runs import plain_rows, write_whole


def test_a_screen_is_recorded_at_each_width_with_its_colours(tmp_path):
    program = (
        "import os, sys; print(os.get_terminal_size().columns, sys.stdout.isatty()); print('\\033[31mred\\033[0m')"
    )
    record_screen.main(
        ["--columns", "40", "100", "--folder", str(tmp_path), "--name=shot", "--", sys.executable, "-c", program]
    )
    for columns in (40, 100):
        assert (tmp_path / f"shot_{columns}.txt").read_text("utf-8") == f"{columns} True\nred\n"
        picture = (tmp_path / f"shot_{columns}.svg").read_text("utf-8")
        assert picture.startswith("<svg") and "red" in picture
    assert record_screen.record([sys.executable, "-c", program], 40)[1].spans[0].style.color.name == "red"


def test_lines_that_scrolled_away_are_kept_and_failures_raised():
    lines = record_screen.record([sys.executable, "-c", "for number in range(120): print('line', number)"], 40)
    assert [line.plain for line in lines] == [f"line {number}" for number in range(120)]
    with pytest.raises(subprocess.CalledProcessError):
        record_screen.record([sys.executable, "-c", "raise SystemExit(2)"], 40)


@pytest.mark.parametrize(
    ("page", "link", "shown"),
    [
        ("scale.md", "[`scripts/demo.py`](../scripts/demo.py)", "`scripts/demo.py`"),
        (
            "scale.md",
            "[the study](../conf/experiment/study_main.yaml#L3)",
            "the study (`conf/experiment/study_main.yaml`)",
        ),
        ("a/b.md", "[it](../../README.md)", "it (`README.md`)"),
        ("scale.md", "[glossary](glossary.md)", "[glossary](glossary.md)"),
    ],
)
def test_links_out_of_the_documentation_become_names(page, link, shown):
    files = Files([docs_site.File(page, "docs", "site", use_directory_urls=True)])
    site_page = docs_site.Page(None, files.get_file_from_path(page), MkDocsConfig())
    assert docs_site.on_page_markdown(f"See {link}.", site_page) == f"See {shown}."


def test_the_site_has_the_page_of_options(monkeypatch):
    monkeypatch.setattr(docs_site, "write_options_page", lambda: "# Options")
    config = MkDocsConfig()
    config.load_dict({"site_name": "x", "docs_dir": "docs", "site_dir": "site"})
    config.plugins = PluginCollection()
    config.plugins._register_event("files", docs_site.on_files, "docs_site")  # as mkdocs registers a hook
    files = config.plugins.run_event("files", Files([]), config=config)
    assert files.get_file_from_path("options.md").content_string == "# Options"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_page_is_searched_and_sorted_in_a_browser(tmp_path, capsys):
    run_folder = write_whole(tmp_path / "run", plain_rows(40))
    write_page(run_folder, 100, figures=False)
    pictures = tmp_path / "pictures"
    bench_page.main(
        [str(run_folder / "report.html"), "--search", "row", "no such words", "--screenshots", str(pictures)]
    )
    measured = json.loads(capsys.readouterr().out)
    assert measured["size_mb"] > 0 and measured["first_paint_ms"] > 0
    assert measured["sorts"] > 3 and measured["slowest_sort_ms"] > 0
    assert measured["search"]["no such words"].split(": ")[1].startswith("0")
    assert measured["console"] == [] and measured["requests"] == []
    names = {f"{width}-{theme}.png" for width in (1440, 390) for theme in ("light", "dark")}
    assert {file.name for file in pictures.iterdir()} == names
