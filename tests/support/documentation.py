"""The documentation as the tests see it: pages, links, anchors and code blocks."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.support.pipeline import ROOT

PAGES = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "examples" / "outside_package" / "README.md",
]  # fmt: skip
GENERATED_PAGES = [ROOT / "docs" / "options.md"]  # made as the site is built
FENCE = re.compile(
    r"^(?P<indent> *)(?P<marker><!--[^\n]*-->\n *)?```(?P<language>\w*)\n(?P<code>.*?)^ *```$", re.DOTALL | re.MULTILINE
)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class CodeBlock:
    """A fenced block.

    Attributes:
        page: the file it stands in.
        language: as after the fence.
        code: its text, without the indentation of the fence.
        is_run: False where a comment above it says why it is not run.
    """

    page: Path
    language: str
    code: str
    is_run: bool


def page_name(page: Path) -> str:
    """The page's path below the checkout, for the names of tests."""
    return page.relative_to(ROOT).as_posix()


def read_blocks(page: Path) -> list[CodeBlock]:
    """All fenced blocks of a page."""
    blocks = []
    for fence in FENCE.finditer(page.read_text("utf-8")):
        code = re.sub(rf"^{fence['indent']}", "", fence["code"], flags=re.MULTILINE)
        blocks.append(CodeBlock(page, fence["language"], code, "not run" not in (fence["marker"] or "")))
    return blocks


def read_prose(page: Path) -> str:
    """A page without fenced blocks and code in lines."""
    return re.sub(r"`[^`\n]+`", "`code`", FENCE.sub("", page.read_text("utf-8")))


def read_links(page: Path) -> list[str]:
    """Targets of all links and pictures of a page."""
    return LINK.findall(read_prose(page))


def read_anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as the site and GitHub make them."""
    headings = HEADING.findall(FENCE.sub("", page.read_text("utf-8")))
    words = [re.sub(r"[^\w\s-]", "", re.sub(r"[`*]", "", heading)).strip().lower() for heading in headings]
    return {re.sub(r"[\s]+", "-", heading) for heading in words}


def read_commands(page: Path) -> list[list[str]]:
    """The words of each command in the shell blocks of a page that are run."""
    commands = []
    for block in read_blocks(page):
        if block.language in ("sh", "bash", "shell") and block.is_run:
            for line in block.code.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    commands.append(words)
    return commands


def drop_assignments(words: list[str]) -> list[str]:
    """A command without the environment variables set before it."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    return words


def find_overrides(words: list[str]) -> list[str] | None:
    """The overrides of a command that runs the project, whatever starts it; None of any other."""
    words = drop_assignments(words)
    if "train.py" in words:
        return words[words.index("train.py") + 1 :]
    if words[:2] == ["gradfiltering", "run"] or ("run" in words and words[0] == "docker" and "-v" in words):
        return words[len(words) - words[::-1].index("run") :]
    return None
