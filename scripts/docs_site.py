"""Hooks of the documentation site: the reference of options, and links to files outside docs/."""

import re
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))  # mkdocs loads hooks without their folder

from options_reference import write_options_page

OUTSIDE_LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#\s]*)(?:#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated page of options."""
    files.append(File.generated(config, "options.md", content=write_options_page()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Replace links to files of the checkout outside docs/, which the site does not hold, by their names."""
    return OUTSIDE_LINK.sub(lambda link: _name_file(page.file.src_uri, link[1], link[2]), markdown)


def _name_file(page_path: str, link_text: str, target: str) -> str:
    parts: list[str] = []
    for part in (PurePosixPath("docs") / PurePosixPath(page_path).parent / target).parts:
        if part != "..":
            parts.append(part)
        elif parts:
            parts.pop()
    file_name = "/".join(parts)
    return f"`{file_name}`" if link_text.strip("`") == file_name else f"{link_text} (`{file_name}`)"
