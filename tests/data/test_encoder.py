import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradfiltering.data import encoder as module
from gradfiltering.data.encoder import SET_ASIDE, Encoder
from gradfiltering.data.encoding import NO_RESPONSE_LEFT
from gradfiltering.data.schemas import EMPTY_RESPONSE
from gradfiltering.data.templates import plain
from gradfiltering.data.tokenizer_hash import hash_tokenizer
from gradfiltering.errors import UserError

ROWS = [("Say it.", "", "right"), ("Name one.", "loudly", "wrong"), ("Go.", "", "  \n"), ("Stop.", "", "x")]


def prompt_and_response(tokenizer, records, position):
    turn = records.schema.turn(records.rows[position])
    return tokenizer(plain(turn, tokenizer))["input_ids"], tokenizer(turn.output)["input_ids"]


def test_ids_are_prompt_response_and_end(tokenizer, cache, make_records):
    records = make_records(ROWS)
    encoded = Encoder(tokenizer, 512, cache).encode(records)
    assert encoded.example_ids.tolist() == [0, 1, 3] and encoded.unscored == [(2, EMPTY_RESPONSE)]
    assert encoded.truncated == 0 and encoded.tokens == sum(len(row["input_ids"]) for row in encoded.table)
    for row in encoded.table:
        prompt, response = prompt_and_response(tokenizer, records, row["example_id"])
        assert row["input_ids"] == [*prompt, *response, tokenizer.eos_token_id]
        assert row["supervised"] == [len(prompt), len(prompt) + len(response) + 1]
        assert (row["tokens"], row["response_tokens"]) == (len(row["input_ids"]), len(response) + 1)
        assert row["lost_tokens"] == 0
    assert encoded.lengths.tolist() == [len(row["input_ids"]) for row in encoded.table]
    assert encoded.response_tokens.tolist() == encoded.table["response_tokens"][:]


def test_the_boundary_does_not_depend_on_merging(make_tokenizer, cache, make_records):
    tokenizer = make_tokenizer(extra="Q.\nAAAA Q.\nAAAA Q.\nAAAA")
    records = make_records([("Q.", "", "AAAA")])
    merged = tokenizer("Q.\nAAAA")["input_ids"]
    prompt, response = tokenizer("Q.\n")["input_ids"], tokenizer("AAAA")["input_ids"]
    assert len(merged) < len(prompt) + len(response), "this tokenizer should merge across the boundary"
    row = Encoder(tokenizer, 512, cache).encode(records).table[0]
    assert row["input_ids"] == [*prompt, *response, tokenizer.eos_token_id] and row["supervised"][0] == len(prompt)


def test_start_token_opens_the_prompt_and_never_the_response(make_tokenizer, cache, make_records):
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer()
    start = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", start)]
    )
    row = Encoder(tokenizer, 512, cache).encode(make_records(ROWS[:1])).table[0]
    assert row["input_ids"][0] == start and row["input_ids"].count(start) == 1


@pytest.mark.parametrize("over", [0, 1, 2, 5])
def test_a_long_response_behind_a_short_prompt_loses_its_end(over, tokenizer, cache, make_records):
    records = make_records([("S", "", "abcdefghijklm")])
    prompt, response = prompt_and_response(tokenizer, records, 0)
    whole = [*prompt, *response, tokenizer.eos_token_id]
    assert len(prompt) <= (len(whole) - over) // 4, "the prompt should be too short to be cut"
    encoded = Encoder(tokenizer, len(whole) - over, cache).encode(records)
    row = encoded.table[0]
    assert row["input_ids"] == whole[: len(whole) - over]
    assert row["response_tokens"] == len(response) + 1 - over and row["supervised"][0] == len(prompt)
    assert encoded.truncated == int(over > 0) and encoded.lost_tokens == row["lost_tokens"] == over


def test_no_token_of_the_response_is_left_where_the_context_holds_one_token(tokenizer, cache, make_records):
    records = make_records([("Q", "", "right")], origin="mine.jsonl")
    words = rf"none of the 1 rows of mine\.jsonl.*{NO_RESPONSE_LEFT}.*allow longer examples"
    with pytest.raises(UserError, match=words):
        Encoder(tokenizer, 1, cache).encode(records)


def test_nothing_scorable_is_an_error_that_counts_the_reasons(tokenizer, cache, make_records):
    records = make_records([("a", "", ""), ("b", "", " ")], origin="mine.jsonl")
    with pytest.raises(
        UserError, match=rf"none of the 2 rows of mine\.jsonl.*2 × {EMPTY_RESPONSE}.*name their columns"
    ):
        Encoder(tokenizer, 4, cache).encode(records)


def test_rows_set_aside_are_unscored_and_keep_an_earlier_reason(tokenizer, cache, make_records):
    encoded = Encoder(tokenizer, 512, cache).encode(make_records(ROWS, set_aside=frozenset({1, 2})))
    assert encoded.unscored == [(1, SET_ASIDE), (2, EMPTY_RESPONSE)] and encoded.example_ids.tolist() == [0, 3]


def test_heldout_rows_without_a_response_are_left_out(tokenizer, cache, make_records):
    encoder, held = Encoder(tokenizer, 512, cache), make_records(ROWS).rows
    assert encoder.encode_heldout(make_records(ROWS)) is None
    assert encoder.encode_heldout(make_records(ROWS, heldout=held)).example_ids.tolist() == [0, 1, 3]
    assert encoder.encode_heldout(make_records(ROWS, heldout=held.select([2]))) is None


def test_a_tokenizer_without_an_end_is_refused(make_tokenizer, cache):
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match=r"no end-of-sequence token.*tokenizer_config\.json"):
        Encoder(tokenizer, 512, cache)


texts = st.text(alphabet=st.sampled_from(list("aA .\n\u00e9\u4e2d\U0001f600")), max_size=12)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(texts, texts, st.one_of(st.none(), texts)), min_size=1, max_size=8),
    max_tokens=st.integers(1, 24),
    aside=st.frozensets(st.integers(0, 7)),
)
def test_every_row_is_scored_or_unscored_with_a_reason(rows, max_tokens, aside, tokenizer, cache, make_records):
    rows = [*rows, ("a", "", "b")]
    records = make_records(rows, set_aside=frozenset(position for position in aside if position < len(rows)))
    try:
        encoded = Encoder(tokenizer, max_tokens, cache).encode(records)
    except UserError as error:
        assert "can be scored" in str(error)
        return
    unscored = [position for position, reason in encoded.unscored if reason]
    assert sorted([*encoded.example_ids.tolist(), *unscored]) == list(range(len(rows)))
    assert encoded.table["example_id"][:] == encoded.example_ids.tolist() == sorted(encoded.example_ids.tolist())
    assert (encoded.response_tokens >= 1).all() and (encoded.lengths <= max_tokens).all()
    for row in encoded.table:
        prompt, response = prompt_and_response(tokenizer, records, row["example_id"])
        whole = [*prompt, *response, tokenizer.eos_token_id]
        assert row["lost_tokens"] == len(whole) - row["tokens"] and (row["lost_tokens"] > 0) == (
            len(whole) > max_tokens
        )
        assert row["lost_tokens"] or row["input_ids"] == whole
        start, stop = row["supervised"]
        assert row["input_ids"][start:stop] == [*response, tokenizer.eos_token_id][: stop - start]
        assert stop == len(row["input_ids"]), "the response closes the row, cut or not"


class TestCache:
    @pytest.fixture
    def calls(self, monkeypatch):
        """Counts how often rows are tokenised."""
        made, encode_rows = [], module.encode_rows

        def counted(*args, **options):
            made.append(1)
            return encode_rows(*args, **options)

        monkeypatch.setattr(module, "encode_rows", counted)
        return made

    def test_a_second_encoding_reads_the_table(self, calls, tokenizer, cache, make_records):
        first = Encoder(tokenizer, 512, cache).encode(make_records(ROWS))
        second = Encoder(tokenizer, 512, cache).encode(make_records(ROWS))
        assert len(calls) == 1, "the second encoding of the same rows tokenised again"
        assert second.table.to_list() == first.table.to_list() and second.unscored == first.unscored

    @pytest.mark.parametrize("what", ["template", "max_tokens", "tokenizer", "special", "content", "fewer"])
    def test_anything_that_matters_makes_a_new_table(self, what, calls, tokenizer, make_tokenizer, cache, make_records):
        changed = make_tokenizer()
        if what == "special":
            changed.eos_token = "<s>"
        if what == "tokenizer":
            changed = make_tokenizer(extra="loudly loudly")
        rows = {"content": [*ROWS[:3], ("Stop.", "", "y")], "fewer": ROWS[:3]}.get(what, ROWS)
        records = make_records(rows, template="alpaca" if what == "template" else "plain")
        Encoder(tokenizer, 512, cache).encode(make_records(ROWS))
        Encoder(changed, 511 if what == "max_tokens" else 512, cache).encode(records)
        assert len(calls) == 2, f"a change of {what} read the table of other examples"

    def test_what_does_not_matter_makes_none(self, calls, tokenizer, cache, make_records):
        """Neither other columns, nor what may be done with the rows, nor a padded call of the tokenizer."""
        rows = [dict(zip(("instruction", "input", "output"), row, strict=True)) for row in ROWS]
        Encoder(tokenizer, 512, cache).encode(make_records(rows))
        tokenizer.pad_token = tokenizer.eos_token
        padded = hash_tokenizer(tokenizer)
        tokenizer(["a", "a longer one"], padding=True, truncation=True, max_length=3)
        assert hash_tokenizer(tokenizer) == padded, "the state of the last call is no rule of the tokenizer"
        tokenizer.pad_token = None
        Encoder(tokenizer, 512, cache).encode(make_records([{**row, "n": 1} for row in rows], set_aside=frozenset({0})))
        assert len(calls) == 1

    def test_a_full_disk_is_a_user_error(self, monkeypatch, tokenizer, cache, make_records):
        def full(*args, **options):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("pyarrow.OSFile", full)
        with pytest.raises(UserError, match=r"No space left on device.*cache\.path="):
            Encoder(tokenizer, 512, cache).encode(make_records(ROWS))


def test_real_alpaca_rows_without_an_output_are_found(shared_data, cache, write_rows, file_source):
    from transformers import GPT2TokenizerFast

    path = shared_data / "alpaca" / "alpaca_data.json"
    rows = json.loads(path.read_text("utf-8"))[:2000]
    tokenizer = GPT2TokenizerFast.from_pretrained(str(shared_data / "tokenizers" / "gpt2"))
    records = file_source(str(path), limit=2000).load(0)
    encoded = Encoder(tokenizer, 512, cache).encode(records)
    assert encoded.unscored == [(position, EMPTY_RESPONSE) for position in (284, 1223, 1347, 1736)]
    assert len(encoded) == 1996
    first = encoded.table[0]["input_ids"]
    assert tokenizer.decode(first) == f"{rows[0]['instruction']}\n{rows[0]['output']}<|endoftext|>"
