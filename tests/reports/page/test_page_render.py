"""Pages that trust no text and load nothing."""

import base64
import hashlib
import json
import re

import pytest

from gradfiltering.reports.page.render import FOLDER, PLOTLY, json_text

HOSTILE = "</script><!--<script>alert(1)</script> & \u2028\u2029 \ud800 \x00 \"'"


def test_json_in_a_script_element_reads_back_and_cannot_end_it():
    text = json_text({"a": [HOSTILE, "ünï 日本 🙂"], HOSTILE: 1})
    assert json.loads(text) == {"a": [HOSTILE, "ünï 日本 🙂"], HOSTILE: 1}
    assert not re.search("[<>&\u2028\u2029\ud800-\udfff]", text) and "日本" in text
    text.encode()


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(ValueError):
        json_text([float("nan")])


def test_the_policy_lets_the_pages_own_scripts_run_and_nothing_load(whole):
    from gradfiltering.reports.page.build import PageSettings, write_page

    text = write_page(whole, PageSettings(True, 5000, False)).read_text("utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1].replace("&#39;", "'")
    assert "default-src 'none'" in policy and "unsafe-inline" not in policy.split("script-src")[1]
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    assert len(scripts) == 3
    for code in scripts:
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy, "a script would be blocked"
    head = text.split("<script>")[0]
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", head), "something would be loaded"


def test_the_vendored_script_carries_its_licence():
    assert "MIT" in (FOLDER / PLOTLY).read_text("utf-8")[:400]
    assert "Permission is hereby granted" in (FOLDER / "vendor" / "plotly.LICENSE").read_text("utf-8")
