"""Text that every file can hold."""


def replace_lone_surrogates(text: str) -> str:
    """Replace each half of a surrogate pair, which no UTF-8 file can hold, by U+FFFD as browsers do."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
