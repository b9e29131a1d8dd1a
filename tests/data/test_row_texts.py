"""Rows as people read them."""

import pyarrow.parquet as pq

from gradfiltering.data.row_texts import prompt_and_response, write_row_texts
from gradfiltering.data.schemas import Messages, Text
from gradfiltering.runs.cache import Cache
from gradfiltering.runs.plain_text import replace_lone_surrogates
from tests.reports.page.runs import plain_rows, records, typed_records


def kept(folder, rows, made=records):
    folder.mkdir(exist_ok=True)
    write_row_texts(folder, made(rows), Cache(folder.parent / "cache"))
    return pq.ParquetFile(folder / "rows.parquet")


def test_every_row_is_kept_in_order(tmp_path):
    rows = [{"instruction": "do", "input": "this", "output": "done\n", "source": "s"}, *plain_rows(3)]
    found = kept(tmp_path / "run", rows).read().to_pylist()
    assert found[0] == {"example_id": 0, "prompt": "do\n\nthis", "response": "done\n", "source": "s"}
    assert [row["example_id"] for row in found] == [0, 1, 2, 3]


def test_runs_on_the_same_rows_share_one_file_and_a_fingerprint(tmp_path):
    first, second = kept(tmp_path / "a", plain_rows(5)), kept(tmp_path / "b", plain_rows(5), typed_records)
    other = kept(tmp_path / "c", plain_rows(5)[::-1])
    prints = [file.metadata.metadata[b"fingerprint"] for file in (first, second, other)]
    assert prints[0] == prints[1] != prints[2]
    assert (tmp_path / "a" / "rows.parquet").samefile(tmp_path / "b" / "rows.parquet")
    assert not list(tmp_path.rglob("*.part"))


def test_halves_of_surrogate_pairs_become_the_replacement_character_and_nothing_else_changes(tmp_path):
    text = "a\x00b \ud83d c 🙂 \u202e"
    found = kept(tmp_path / "run", [{"instruction": text, "output": text}]).read().to_pylist()[0]
    assert found["prompt"] == text.replace("\ud83d", "\ufffd") == replace_lone_surrogates(text)
    assert found["source"] is None


def test_a_conversation_is_shown_up_to_its_last_answer():
    said = [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "Ciao")]
    row = {"messages": [{"role": role, "content": content} for role, content in said]}
    prompt, response = prompt_and_response(Messages("messages"), row)
    assert response == "Ciao" and prompt == "system: Be kind.\n\nuser: Hi\n\nassistant: Hello\n\nuser: Bye"
    assert prompt_and_response(Messages("messages"), {"messages": []}) == ("", "")
    assert prompt_and_response(Text("text"), {"text": "all of it"}) == ("", "all of it")
