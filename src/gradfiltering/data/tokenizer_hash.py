"""A digest of everything that decides what ids a tokenizer gives to a text."""

import hashlib
import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

# Options of a tokenizer that say where it lies, how it pads, or what stands in the hash anyway.
WITHOUT_EFFECT = re.compile(
    r"name_or_path|is_local|local_files_only|model_max_length|(padding|truncation)_side|chat_template|"
    r".*_(file|token|tokens|tokens_decoder)"
)


def hash_tokenizer(tokenizer: Any) -> str:
    """Digest of what decides a tokenizer's output: its rules, vocabulary and special tokens."""
    if tokenizer.is_fast:
        backend_rules = json.loads(tokenizer.backend_tokenizer.to_str())
        tokenizer_rules = json.dumps(
            {**backend_rules, "padding": None, "truncation": None}
        )  # left over from the last call
    else:
        tokenizer_rules = _slow_rules(tokenizer)
    special_tokens = repr(sorted(tokenizer.special_tokens_map.items(), key=str)) + repr(tokenizer.chat_template)
    return hashlib.sha256((tokenizer_rules + special_tokens).encode()).hexdigest()[:32]


def _slow_rules(tokenizer: Any) -> str:
    """Describe what decides the ids of a tokenizer written in Python: class, options, vocabulary, files.

    The files hold what the vocabulary does not: merges, or the pieces' scores in a sentencepiece model.
    """
    with TemporaryDirectory() as folder:
        tokenizer.save_vocabulary(folder)
        file_digests = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).iterdir())
        }
    deciding_options = {
        name: value for name, value in tokenizer.init_kwargs.items() if not WITHOUT_EFFECT.fullmatch(name)
    }
    rules = (tokenizer.get_vocab(), tokenizer.added_tokens_decoder, deciding_options, file_digests)
    return type(tokenizer).__name__ + repr([sorted(entries.items()) for entries in rules])
