"""Tokens by which a tokenizer says that it does not know the text."""

import re
from typing import Any

import numpy as np

from gradfiltering.data.examples import Examples

# How a sentencepiece tokenizer spells a byte outside its vocabulary; line breaks and tabs are always spelt so.
BYTE_TOKEN = re.compile(r"<0x(?!0[9AD])[0-9A-F]{2}>")
CHUNK_ROWS = 10_000


def unknown_token_share(examples: Examples, tokenizer: Any) -> float:
    """Return the share of tokens of the rows that are unknown, or single bytes of characters that are.

    Args:
        examples: tokenised rows.
        tokenizer: that they were tokenised by.
    """
    special_ids = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}
    unknown_ids = {tokenizer.unk_token_id} - special_ids - {None}
    unknown_ids |= {token_id for token, token_id in tokenizer.get_vocab().items() if BYTE_TOKEN.fullmatch(token)}
    sought_ids = np.asarray(sorted(unknown_ids), dtype=np.int64)
    if not len(sought_ids) or not len(examples):
        return 0.0
    unknown_tokens = total_tokens = 0
    for batch in examples.table.select_columns(["input_ids"]).with_format("arrow").iter(CHUNK_ROWS):
        token_ids = batch["input_ids"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        unknown_tokens += int(np.isin(token_ids, sought_ids).sum())
        total_tokens += len(token_ids)
    return unknown_tokens / max(total_tokens, 1)
