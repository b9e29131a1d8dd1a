"""Secrets: values of options named like one, masked wherever a run writes or prints."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

MASK = "***"
SHORTEST_REPLACED = 4  # characters; a shorter value is masked beside its name only, as it stands in other words too
_STRONG_WORDS = {
    "password", "passwords", "passwd", "passphrase", "pwd", "secret", "secrets", "credential", "credentials",
    "authorization", "authorisation", "cookie", "cookies",
}  # fmt: skip
_LAST_WORDS = {"key", "apikey", "token", "header", "headers", "auth", "bearer", "signature", "sig"}
_HARMLESS_LAST_WORDS = {"variable", "variables", "name", "limit", "count"}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_USER_OF_URL = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s'\"]+@", re.IGNORECASE)  # a password may hold an @ itself
_QUERY = re.compile(r"[?&](?P<name>[\w.-]+)=(?P<value>[^&\s'\"]+)")
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[^\s'\",}\]]+")
_ASSIGNMENT = re.compile(r"(?P<name>[\w.@/+~-]+)(?P<sign>=)(?P<value>\"[^\"]*\"|'[^']*'|[^\s&,}\]]+)")
_ENTRY = re.compile(
    r"(?P<name>[\w-]+)['\"]?(?P<sign>\s*:\s*)"
    r"(?P<value>\"[^\"]*\"|'[^']*'|\{[^{}]*\}|\[[^\[\]]*\]|[^,{}\[\]]+)"
)

_known_secrets: set[str] = set()


def names_secret(option_name: str) -> bool:
    """Return True for a name whose value is a secret: `hf_token`, `api_key`, `X-Auth-Token`, `headers`, `password`.

    Names of counts and of environment variables are no secrets: `max_tokens`, `key_variable`, `token_limit_name`.
    """
    last_part = re.split(r"[.@/]", option_name)[-1]
    name_words = [word.lower() for word in _WORD.findall(last_part)]
    if not name_words or name_words[-1] in _HARMLESS_LAST_WORDS:
        return False
    return name_words[-1] in _LAST_WORDS or not _STRONG_WORDS.isdisjoint(name_words)


def mask_secrets(option_value: Any) -> Any:
    """Return a copy of plain options in which the values of options that name a secret are masked, nested ones too."""
    if isinstance(option_value, Mapping):
        return {
            option_name: _mask_leaves(option_entry) if names_secret(str(option_name)) else mask_secrets(option_entry)
            for option_name, option_entry in option_value.items()
        }
    if isinstance(option_value, list | tuple):
        return [mask_secrets(option_entry) for option_entry in option_value]
    return mask_override(option_value) if isinstance(option_value, str) else option_value


def _mask_leaves(option_value: Any) -> Any:
    if isinstance(option_value, Mapping):
        return {option_name: _mask_leaves(option_entry) for option_name, option_entry in option_value.items()}
    if isinstance(option_value, list | tuple):
        return [_mask_leaves(option_entry) for option_entry in option_value]
    return option_value if option_value is None else MASK


def remember_secrets(option_value: Any, is_secret: bool = False) -> None:
    """Remember the values of options that name a secret, so that `mask_text` finds them in any text of this process.

    Args:
        option_value: plain options.
        is_secret: True below a name of a secret.
    """
    if isinstance(option_value, Mapping):
        for option_name, option_entry in option_value.items():
            remember_secrets(option_entry, is_secret or names_secret(str(option_name)))
    elif isinstance(option_value, list | tuple):
        for option_entry in option_value:
            remember_secrets(option_entry, is_secret)
    elif is_secret and option_value is not None and not isinstance(option_value, bool):
        secret_text = str(option_value)
        _known_secrets.update(text for text in (secret_text, quote(secret_text, safe="")) if text != MASK)


def remember_override(override: str) -> None:
    """Remember the value of an override that names a secret, and the values of a sweep over it."""
    option_name, equals_sign, option_value = override.partition("=")
    if equals_sign and _path_names_secret(option_name):
        remember_secrets([option_value, *option_value.split(",")], is_secret=True)


def mask_text(text: str) -> str:
    """Mask remembered secrets, users of URLs, and whatever follows `token=` and the like, in any text."""
    for secret in sorted(_known_secrets, key=len, reverse=True):
        if len(secret) >= SHORTEST_REPLACED:
            text = text.replace(secret, MASK)
    text = _USER_OF_URL.sub(rf"\1{MASK}@", text)
    text = _BEARER.sub(rf"\1 {MASK}", _QUERY.sub(_mask_match, text))
    return _ASSIGNMENT.sub(_mask_match, text)


def mask_override(override: str) -> str:
    """Mask an override of the command line: `NAME=VALUE` as a whole, and entries of a mapping in its value."""
    option_name, equals_sign, option_value = override.partition("=")
    if equals_sign and re.fullmatch(r"[\w.@/+~-]+", option_name):
        if _path_names_secret(option_name):
            return f"{option_name}={MASK}"
        return f"{option_name}={_ENTRY.sub(_mask_entry, mask_text(option_value))}"
    return mask_text(override)


def _path_names_secret(option_path: str) -> bool:
    """Return True where the option, or anything that it belongs to, is named like a secret: `headers.X-Team`."""
    return any(names_secret(path_part) for path_part in option_path.lstrip("+~").split("."))


def _mask_entry(match: re.Match[str]) -> str:
    if names_secret(match["name"]):
        return _mask_match(match)
    return match[0][: match.start("value") - match.start()] + _ENTRY.sub(_mask_entry, match["value"])


def _mask_match(match: re.Match[str]) -> str:
    if not names_secret(match["name"]):
        return match[0]
    return match[0][: match.start("value") - match.start()] + MASK
