"""Text that every file can hold (JSON can spell half a surrogate pair, and UTF-8 cannot), and messages on one line."""

import json
from collections.abc import Mapping
from typing import Any


def is_encodable(text: str) -> bool:
    """Return True for a text without half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def replace_lone_surrogates(text: str) -> str:
    """Replace each half of a surrogate pair by U+FFFD as browsers do; for models, tables, pages and the screen."""
    return text if is_encodable(text) else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def replace_all_lone_surrogates(value: Any) -> Any:
    """Replace them in every text of a value made of objects and lists."""
    if isinstance(value, str):
        return replace_lone_surrogates(value)
    if isinstance(value, Mapping):
        return {replace_lone_surrogates(key): replace_all_lone_surrogates(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [replace_all_lone_surrogates(entry) for entry in value]
    return value


def to_readable_json(value: Any, **options: Any) -> str:
    """Write JSON as readable text; a value with half a surrogate pair is escaped, so that reading gives it back."""
    json_text = json.dumps(value, ensure_ascii=False, **options)
    return json_text if is_encodable(json_text) else json.dumps(value, **options)


def one_line(error: Exception, most_characters: int = 300) -> str:
    """The message of a library's error on one line, cut where it is long."""
    return " ".join(str(error).split())[:most_characters]
