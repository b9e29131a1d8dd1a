"""Pages that trust no text and load nothing."""

import base64
import hashlib
import json
import re

import pandas as pd
import pytest

from gradfiltering.reports.page.html_rendering import dump_json, render_table

HOSTILE = "</script><!--<script>alert(1)</script> & \u2028\u2029 \ud800 \x00 \"'"


def test_json_in_a_script_element_reads_back_and_cannot_end_it():
    text = dump_json({"a": [HOSTILE, "ünï 日本 🙂"], HOSTILE: 1})
    assert json.loads(text) == {"a": [HOSTILE, "ünï 日本 🙂"], HOSTILE: 1}
    assert not re.search("[<>&\u2028\u2029\ud800-\udfff]", text) and "日本" in text
    text.encode()


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(ValueError):
        dump_json([float("nan")])


def test_the_policy_admits_the_pages_scripts_alone(whole):
    from gradfiltering.reports.page.run_page import write_page

    text = write_page(whole, 5000, figures=False).read_text("utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1].replace("&#39;", "'")
    assert "default-src 'none'" in policy and "unsafe-inline" not in policy.split("script-src")[1]
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    assert len(scripts) == 3
    for code in scripts:
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy, "a script would be blocked"
    head = text.split("<script>")[0]
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", head), "something would be loaded"


def test_text_in_tables_is_escaped_and_not_cut():
    table = pd.DataFrame({"<b>": [f"<img src=x> {'x' * 200}"]}, index=["<i>"])
    text = render_table(table, "<u>")
    assert not re.search("<(b|i|u|img)>?", text.replace("<tbody>", "").replace("border", "")) and "x" * 200 in text
