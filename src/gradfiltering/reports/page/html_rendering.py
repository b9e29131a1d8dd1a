"""Self-contained pages: template, style, scripts and data in one file that needs no network and trusts no text."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from gradfiltering.reports.page.charts import COLOUR_VARIABLES, STYLE, Chart
from gradfiltering.reports.page.glossary import mark_terms, mark_verdict
from gradfiltering.runs.files import atomic_path
from gradfiltering.runs.plain_text import replace_lone_surrogates

TEMPLATE_FOLDER = Path(__file__).parent
# Characters that could end a script element or a line of it, and halves of surrogate pairs, which UTF-8 cannot hold.
UNSAFE = re.compile("[<>&\u2028\u2029\ud800-\udfff]")


def write_html(
    page_path: Path,
    template: str,
    context: Mapping[str, Any],
    page_charts: Sequence[Chart],
    *,
    page_data: Mapping[str, Any] | None = None,
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
) -> None:
    """Write a page that extends `base.html`.

    Its policy lets only these scripts run and nothing be loaded, whatever text the page holds.

    Args:
        page_path: the file.
        template: file beside this module.
        context: values for the template; text is escaped.
        page_charts: drawn where the template calls `chart(name)`.
        page_data: JSON values by the id of their script element, read by the page's scripts.
        styles: files beside this module, after `base.css`.
        scripts: files beside this module, after Vega and `base.js`.
    """
    script_texts = [_read_asset(name) for name in ("base.js", *scripts)]
    chart_specifications = {}
    if page_charts:
        script_texts.insert(0, bundle_vega())
        chart_specifications = {chart.name: chart.specification() for chart in page_charts}
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src {' '.join(_hash_script(text) for text in script_texts)}"
    )
    chart_data = {"drawings": chart_specifications, "style": STYLE, "colours": COLOUR_VARIABLES}
    page_values = {
        "policy": policy,
        "style": Markup("\n".join(_read_asset(name) for name in ("base.css", *styles))),
        "scripts": [Markup(text) for text in script_texts],
        "data": {name: Markup(dump_json(value)) for name, value in {"charts": chart_data, **(page_data or {})}.items()},
        "charts": {chart.name: chart for chart in page_charts},
    }
    text = _environment().get_template(template).render(page=page_values, **context)
    with atomic_path(page_path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def dump_json(value: Any) -> str:
    """Write JSON that may stand inside a script element, whatever strings it holds.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def render_table(table: pd.DataFrame, heading: str = "", kind: str = "figures") -> Markup:
    """Write a table in HTML; every text is escaped.

    Args:
        table: its index has the names of the rows.
        heading: of the column of names.
        kind: `figures` for columns set to the right, `words` to the left.
    """
    with pd.option_context("display.max_colwidth", None):
        named = table.rename_axis(index=None, columns=heading or None)
        html = named.to_html(border=0, na_rep="–", classes=kind, justify="unset", escape=True)
    return Markup(replace_lone_surrogates(html))


@cache
def bundle_vega() -> str:
    """Bundle the JavaScript of Vega, Vega-Lite and Vega-Embed."""
    vega_bundle = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # the snippet is optional
    vega_bundle = vega_bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")
    return f"(() => {{\n{vega_bundle}\n}})();"  # keeps the bundle's thousands of names out of the page's


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: replace_lone_surrogates(value) if type(value) is str else value,
    )
    environment.filters["table"] = render_table
    environment.filters["terms"] = mark_terms
    environment.filters["verdict"] = mark_verdict
    return environment


@cache
def _read_asset(name: str) -> str:
    return (TEMPLATE_FOLDER / name).read_text("utf-8").replace("\r\n", "\n").strip("\n")


def _hash_script(text: str) -> str:
    # The text of the element is what lies between its tags, the line breaks of the template included.
    digest = hashlib.sha256(f"\n{text}\n".encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
