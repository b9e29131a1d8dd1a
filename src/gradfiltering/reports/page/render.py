"""Self-contained pages: template, style, scripts and data in one file that needs no network and trusts no text."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from gradfiltering.data.row_texts import replace_lone_surrogates
from gradfiltering.reports.page.charts import Chart

FOLDER = Path(__file__).parent
PLOTLY = "vendor/plotly-cartesian.min.js"
# What could end a script element or a line of it, and halves of surrogate pairs, which no UTF-8 file can hold.
UNSAFE = re.compile("[<>&\u2028\u2029\ud800-\udfff]")


def render(
    template: str,
    context: Mapping[str, Any],
    charts: Sequence[Chart],
    data: Mapping[str, Any] | None = None,
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
) -> str:
    """A page that extends `base.html`.

    Its policy lets only these scripts run and nothing be loaded, whatever text the page holds.

    Args:
        template: file beside this one.
        context: what the template shows; text is escaped.
        charts: drawn where the template calls `chart(name)`.
        data: JSON values by the id of their script element, read by the page's scripts.
        styles: files beside this one, after `base.css`.
        scripts: files beside this one, after Plotly and `base.js`.
    """
    code = [_asset(name) for name in (*([PLOTLY] if charts else []), "base.js", *scripts)]
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src {' '.join(_hash(one) for one in code)}"
    )
    values = {"charts": {chart.name: chart.plain() for chart in charts}, **(data or {})}
    page = {
        "policy": policy,
        "style": Markup("\n".join(_asset(name) for name in ("base.css", *styles))),
        "scripts": [Markup(one) for one in code],
        "data": {name: Markup(json_text(value)) for name, value in values.items()},
        "by_name": {chart.name: chart for chart in charts},
    }
    return _environment().get_template(template).render(page=page, **context)


def json_text(value: Any) -> str:
    """JSON that may stand inside a script element, whatever strings it holds.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: replace_lone_surrogates(value) if type(value) is str else value,
    )


@cache
def _asset(name: str) -> str:
    return (FOLDER / name).read_text("utf-8").replace("\r\n", "\n").strip("\n")


def _hash(code: str) -> str:
    # The text of the element is what lies between its tags, the line breaks of the template included.
    digest = hashlib.sha256(f"\n{code}\n".encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
