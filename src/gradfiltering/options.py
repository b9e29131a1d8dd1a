"""Checked options: frozen dataclasses whose annotations say which values are allowed."""

import inspect
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, field, fields
from functools import wraps
from inspect import Parameter, Signature
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic.dataclasses import rebuild_dataclass
from pydantic_core import ErrorDetails, core_schema

from gradfiltering.errors import UserError

__all__ = [
    "NonNegativeFloat",
    "NonNegativeInt",
    "OptionsError",
    "PositiveFloat",
    "PositiveInt",
    "Probability",
    "Share",
    "ShareBelowOne",
    "field",
    "model_validator",
    "options",
]

PositiveInt = Annotated[int, Gt(0)]
NonNegativeInt = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Share = Annotated[float, Gt(0), Le(1)]  # (0, 1]
ShareBelowOne = Annotated[float, Ge(0), Lt(1)]  # [0, 1)
Probability = Annotated[float, Ge(0), Le(1)]  # [0, 1]

_CONFIG = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True, defer_build=True)
_SIMPLE_TYPES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
_CONTAINERS = {
    tuple: "a list", list: "a list", Sequence: "a list", set: "a list", frozenset: "a list", dict: "a mapping",
    Mapping: "a mapping",
}  # fmt: skip
_OptionsClass = TypeVar("_OptionsClass", bound=type)


class OptionsError(UserError):
    """A value that an options class refuses.

    Attributes:
        allowed: the values the argument may have, in words; empty where a rule over several arguments was broken.
        value: the refused value.
    """

    def __init__(self, message: str, owner: type, arguments: Sequence[str], allowed: str = "", value: Any = None):
        super().__init__(message, owner, arguments)
        self.allowed = allowed
        self.value = value


@dataclass_transform(frozen_default=True, field_specifiers=(field, Field))
def options(cls: _OptionsClass) -> _OptionsClass:
    """Make a class a frozen dataclass that checks its arguments by their annotations.

    Values are never converted, except whole numbers to floats, lists to tuples or sets, and text to
    paths. Not-a-number, infinities and unknown arguments are refused. Rules over several fields are
    methods decorated with `@model_validator(mode="after")` that raise ValueError and return self.
    Fields of other classes, protocols excepted, must be instances of these.

    Raises:
        OptionsError: raised by the decorated class; says which argument is wrong and what it may be.
    """
    annotations = inspect.get_annotations(cls)
    cls.__annotations__ = {name: _checkable(_resolve(hint, cls)) for name, hint in annotations.items()}
    checked_class: Any = pydantic_dataclass(frozen=True, config=_CONFIG)(cls)
    validating_init = checked_class.__init__

    @wraps(validating_init)
    def checked_init(self: Any, *args: Any, **kwargs: Any) -> None:
        if not checked_class.__pydantic_complete__:  # built at first use, which sets another __init__
            rebuild_dataclass(checked_class)
            checked_class.__init__ = checked_init
        try:
            validating_init(self, *args, **kwargs)
        except ValidationError as error:
            raise _explain(checked_class, error.errors()[0]) from error.__cause__

    checked_class.__init__ = checked_init
    checked_class.__signature__ = _signature(checked_class)
    decorated: _OptionsClass = checked_class
    return decorated


def _signature(cls: Any) -> Signature:
    parameters = []
    for option in fields(cls):
        default = Parameter.empty if option.default is MISSING else option.default
        if option.default_factory is not MISSING:
            default = option.default_factory()
        kind = Parameter.POSITIONAL_OR_KEYWORD
        parameters.append(Parameter(option.name, kind, default=default, annotation=option.type))
    return Signature(parameters)


def describe_type(hint: Any) -> str:
    """Return the values that an annotation allows, in words: `a positive number or null`."""
    origin = get_origin(hint)
    if origin is Annotated:
        base_type, *constraints = get_args(hint)
        return _describe_range(describe_type(base_type), constraints)
    if origin is Literal:
        choices = [str(choice) for choice in get_args(hint)]
        return choices[0] if len(choices) == 1 else f"one of: {', '.join(choices)}"
    if origin in (types.UnionType, Union):
        return " or ".join(describe_type(alternative) for alternative in get_args(hint))
    hint = origin or hint
    if hint in _SIMPLE_TYPES or hint in _CONTAINERS:
        return _SIMPLE_TYPES.get(hint) or _CONTAINERS[hint]
    return "a path" if hint is Path else f"a {getattr(hint, '__name__', hint)}"


def _describe_range(noun: str, constraints: Sequence[Any]) -> str:
    lower = next((bound for bound in constraints if isinstance(bound, Gt | Ge)), None)
    upper = next((bound for bound in constraints if isinstance(bound, Lt | Le)), None)
    low = None if lower is None else (lower.gt if isinstance(lower, Gt) else lower.ge)
    high = None if upper is None else (upper.lt if isinstance(upper, Lt) else upper.le)
    if low is not None and high is not None:
        brackets = "(" if isinstance(lower, Gt) else "[", ")" if isinstance(upper, Lt) else "]"
        return f"{noun} in {brackets[0]}{low}, {high}{brackets[1]}"
    if low == 0:
        sign = "positive" if isinstance(lower, Gt) else "non-negative"
        return noun.replace("a ", f"a {sign} ", 1)
    if low is not None:
        return f"{noun} {'above' if isinstance(lower, Gt) else 'of at least'} {low}"
    if high is not None:
        return f"{noun} {'below' if isinstance(upper, Lt) else 'of at most'} {high}"
    return noun


def _explain(cls: type, details: ErrorDetails) -> OptionsError:
    """Turn pydantic's first complaint into one sentence."""
    field_names = [option.name for option in fields(cls)]
    raised = details.get("ctx", {}).get("error")
    argument = str(details["loc"][0]) if details["loc"] else ""
    if not argument:  # a rule of the class
        return OptionsError(str(raised or details["msg"]), cls, getattr(raised, "arguments", ()) or ())
    if details["loc"][0] in range(len(field_names)):  # given by position
        argument = field_names[int(details["loc"][0])]
    if argument not in field_names:
        known_names = ", ".join(field_names)
        return OptionsError(f"{cls.__name__} has no argument {argument}; it has {known_names}", cls, (argument,))
    if details["type"].startswith("missing") and len(details["loc"]) == 1:
        return OptionsError(f"{cls.__name__} needs the argument {argument}", cls, (argument,))
    value = details["input"]
    if raised is not None:
        return OptionsError(f"{argument}: {raised}", cls, (argument,), str(raised), value)
    allowed = describe_type(get_type_hints(cls, include_extras=True)[argument])
    if len(details["loc"]) > 1 and "a list" in allowed:
        allowed = f"{allowed} ({details['msg'].lower()} at item {details['loc'][1]})"
    return OptionsError(f"{argument} must be {allowed}, got {value!r}", cls, (argument,), allowed, value)


class _InstanceOf:
    """Makes pydantic check the class of a value and nothing inside it."""

    @staticmethod
    def __get_pydantic_core_schema__(source: Any, handler: Any) -> core_schema.CoreSchema:
        if getattr(source, "_is_protocol", False):
            return core_schema.any_schema()
        return core_schema.is_instance_schema(source)


def _resolve(hint: Any, cls: type) -> Any:
    """Evaluate an annotation given as text; a name that only type checkers import allows anything."""
    if not isinstance(hint, str):
        return hint
    try:
        return eval(hint, vars(sys.modules[cls.__module__]), dict(vars(cls)))
    except NameError:
        return Any


def _checkable(hint: Any) -> Any:
    """Rewrite an annotation so that pydantic takes lists for tuples, text for paths and instances as they are."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any or hint is ClassVar or origin in (ClassVar, Literal, Callable, type):
        return hint
    if hint is Path:
        return Annotated[Path, BeforeValidator(lambda value: Path(value) if isinstance(value, str) else value)]
    if origin is Annotated:
        return Annotated[(_checkable(arguments[0]), *arguments[1:])] if len(arguments) > 1 else hint
    if origin in (types.UnionType, Union):
        return Union[tuple(_checkable(alternative) for alternative in arguments)]  # noqa: UP007
    if origin is not None and origin in _CONTAINERS:
        inner = tuple(item if item is ... else _checkable(item) for item in arguments)
        container = origin[inner if len(inner) > 1 else inner[0]]
        return _from_list(container, origin) if origin in (tuple, set, frozenset) else container
    if hint in (tuple, set, frozenset):
        return _from_list(hint, hint)
    if isinstance(hint, type) and hint not in _SIMPLE_TYPES and hint not in _CONTAINERS and hint is not bytes:
        return Annotated[hint, _InstanceOf]
    if isinstance(origin, type):  # a generic class of this project
        return Annotated[origin, _InstanceOf]
    return hint


def _from_list(container: Any, kind: type) -> Any:
    return Annotated[container, BeforeValidator(lambda value: kind(value) if isinstance(value, list) else value)]
