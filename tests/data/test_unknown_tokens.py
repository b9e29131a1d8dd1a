"""Tokens by which a tokenizer says that it does not know the text are counted."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaTokenizerFast, PreTrainedTokenizerFast

from gradfiltering.data.encoder import Encoder
from gradfiltering.data.unknown_tokens import unknown_token_share


def share(tokenizer, make_records, cache, output: str) -> float:
    dataset = make_records([{"instruction": "", "input": "", "output": output}], template="verbatim")
    return unknown_token_share(Encoder(tokenizer, 64, cache).encode_all(dataset).examples, tokenizer)


def test_unknown_words_of_a_word_tokenizer_are_counted(make_records, cache):
    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "yes": 2, "no": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    assert share(tokenizer, make_records, cache, "yes perhaps no never") == pytest.approx(2 / 5)  # and the end token
    assert share(tokenizer, make_records, cache, "yes no no") == 0.0


def test_byte_level_tokens_know_every_character(tokenizer, make_records, cache):
    assert share(tokenizer, make_records, cache, "naïve 東京 🎈") == 0.0


def test_bytes_of_unknown_characters_are_counted(shared_data, make_records, cache):
    tokenizer = LlamaTokenizerFast.from_pretrained(shared_data / "tokenizers" / "llama2")
    assert share(tokenizer, make_records, cache, "plain words\nand a second line") == 0.0
    # U+13000, an Egyptian hieroglyph, is not in the vocabulary of 32,000: four bytes each.
    hieroglyphs = share(tokenizer, make_records, cache, "\U00013000" * 4)
    assert 0.7 < hieroglyphs < 1.0
