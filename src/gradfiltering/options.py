"""Checked options: frozen dataclasses whose annotations say which values are allowed."""

import inspect
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, field, fields
from functools import partial, wraps
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
from pydantic_core import ErrorDetails, PydanticCustomError, core_schema

from gradfiltering.errors import UserError

__all__ = [
    "Correlation",
    "NonNegativeFloat",
    "NonNegativeInt",
    "OpenShare",
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
OpenShare = Annotated[float, Gt(0), Lt(1)]  # (0, 1)
Correlation = Annotated[float, Ge(-1), Le(1)]  # [-1, 1]

_PYDANTIC_CONFIG = ConfigDict(
    strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True, defer_build=True
)
_SIMPLE_TYPES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
_CONTAINER_TYPES = {
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

    def __init__(
        self, message: str, owner: type, arguments: Sequence[str], allowed_values: str = "", value: Any = None
    ):
        super().__init__(message, owner, arguments)
        self.allowed = allowed_values
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
    own_annotations = inspect.get_annotations(cls)
    cls.__annotations__ = {name: _checkable(_resolve(type_hint, cls)) for name, type_hint in own_annotations.items()}
    checked_class: Any = pydantic_dataclass(frozen=True, config=_PYDANTIC_CONFIG)(cls)
    validating_init = checked_class.__init__

    @wraps(validating_init)
    def checked_init(self: Any, *init_args: Any, **init_kwargs: Any) -> None:
        if not checked_class.__pydantic_complete__:  # built at first use, which sets another __init__
            rebuild_dataclass(checked_class)
            checked_class.__init__ = checked_init
        try:
            validating_init(self, *init_args, **init_kwargs)
        except ValidationError as error:
            raise _explain(checked_class, error.errors()[0]) from error.__cause__

    checked_class.__init__ = checked_init
    checked_class.__signature__ = _signature(checked_class)
    checked_options: _OptionsClass = checked_class
    return checked_options


def _signature(cls: Any) -> Signature:
    init_parameters = []
    for option_field in (init_field for init_field in fields(cls) if init_field.init):
        default_value = Parameter.empty if option_field.default is MISSING else option_field.default
        if option_field.default_factory is not MISSING:
            default_value = option_field.default_factory()
        parameter_kind = Parameter.KEYWORD_ONLY if option_field.kw_only else Parameter.POSITIONAL_OR_KEYWORD
        init_parameters.append(
            Parameter(option_field.name, parameter_kind, default=default_value, annotation=option_field.type)
        )
    return Signature(sorted(init_parameters, key=lambda parameter: parameter.kind))


def describe_type(type_hint: Any) -> str:
    """Return the values that an annotation allows, in words: `a positive number or null`."""
    hint_origin = get_origin(type_hint)
    if hint_origin is Annotated:
        base_type, *value_bounds = get_args(type_hint)
        return _describe_range(describe_type(base_type), value_bounds)
    if hint_origin is Literal:
        literal_choices = [str(literal_choice) for literal_choice in get_args(type_hint)]
        return literal_choices[0] if len(literal_choices) == 1 else f"one of: {', '.join(literal_choices)}"
    if hint_origin in (types.UnionType, Union):
        return " or ".join(describe_type(union_member) for union_member in get_args(type_hint))
    type_hint = hint_origin or type_hint
    if type_hint in _SIMPLE_TYPES or type_hint in _CONTAINER_TYPES:
        return _SIMPLE_TYPES.get(type_hint) or _CONTAINER_TYPES[type_hint]
    return "a path" if type_hint is Path else f"a {getattr(type_hint, '__name__', type_hint)}"


def _describe_range(type_noun: str, value_bounds: Sequence[Any]) -> str:
    lower_bound = next((value_bound for value_bound in value_bounds if isinstance(value_bound, Gt | Ge)), None)
    upper_bound = next((value_bound for value_bound in value_bounds if isinstance(value_bound, Lt | Le)), None)
    lowest_value = None if lower_bound is None else (lower_bound.gt if isinstance(lower_bound, Gt) else lower_bound.ge)
    highest_value = None if upper_bound is None else (upper_bound.lt if isinstance(upper_bound, Lt) else upper_bound.le)
    if lowest_value is not None and highest_value is not None:
        bracket_pair = "(" if isinstance(lower_bound, Gt) else "[", ")" if isinstance(upper_bound, Lt) else "]"
        return f"{type_noun} in {bracket_pair[0]}{lowest_value}, {highest_value}{bracket_pair[1]}"
    if lowest_value == 0:
        sign_word = "positive" if isinstance(lower_bound, Gt) else "non-negative"
        return type_noun.replace("a ", f"a {sign_word} ", 1)
    if lowest_value is not None:
        return f"{type_noun} {'above' if isinstance(lower_bound, Gt) else 'of at least'} {lowest_value}"
    if highest_value is not None:
        return f"{type_noun} {'below' if isinstance(upper_bound, Lt) else 'of at most'} {highest_value}"
    return type_noun


def _explain(cls: type, error_details: ErrorDetails) -> OptionsError:
    """Turn pydantic's first complaint into one sentence."""
    field_names = [option_field.name for option_field in fields(cls)]
    raised_error = error_details.get("ctx", {}).get("error")
    argument_name = str(error_details["loc"][0]) if error_details["loc"] else ""
    if not argument_name:  # a rule of the class
        return OptionsError(
            str(raised_error or error_details["msg"]), cls, getattr(raised_error, "arguments", ()) or ()
        )
    if error_details["loc"][0] in range(len(field_names)):  # given by position
        argument_name = field_names[int(error_details["loc"][0])]
    if argument_name not in field_names:
        known_names = ", ".join(field_names)
        message = f"{cls.__name__} has no argument {argument_name}; it has {known_names}"
        return OptionsError(message, cls, (argument_name,))
    if error_details["type"].startswith("missing") and len(error_details["loc"]) == 1:
        return OptionsError(f"{cls.__name__} needs the argument {argument_name}", cls, (argument_name,))
    value = error_details["input"]
    if raised_error is not None:
        return OptionsError(f"{argument_name}: {raised_error}", cls, (argument_name,), str(raised_error), value)
    type_hint = get_type_hints(cls, include_extras=True)[argument_name]
    allowed_values = describe_type(type_hint)
    item_type = _item_type(type_hint, error_details["loc"][1:])
    if item_type is not None and not error_details["type"].startswith("missing"):
        item_key = error_details["loc"][1]
        argument_name += f"[{item_key}]" if isinstance(item_key, int) else f".{item_key}"
        allowed_values = describe_type(item_type)
    elif len(error_details["loc"]) > 1 and "a list" in allowed_values:
        allowed_values = f"{allowed_values} ({error_details['msg'].lower()} at item {error_details['loc'][1]})"
    message = f"{argument_name} must be {allowed_values}, got {value!r}"
    return OptionsError(message, cls, (argument_name,), allowed_values, value)


def _item_type(type_hint: Any, item_location: tuple[int | str, ...]) -> Any:
    """Return the type of one item of a list or mapping; None where the annotation is of neither."""
    while get_origin(type_hint) is Annotated:
        type_hint = get_args(type_hint)[0]
    hint_origin, item_types = get_origin(type_hint), get_args(type_hint)
    if hint_origin not in _CONTAINER_TYPES or not item_types or not item_location:
        return None
    if hint_origin is tuple and item_types[-1] is not ...:
        return item_types[int(item_location[0])] if int(item_location[0]) < len(item_types) else None
    return item_types[1] if _CONTAINER_TYPES[hint_origin] == "a mapping" else item_types[0]


class _InstanceOf:
    """Makes pydantic check the class of a value and nothing inside it."""

    @staticmethod
    def __get_pydantic_core_schema__(source_type: Any, schema_handler: Any) -> core_schema.CoreSchema:
        if getattr(source_type, "_is_protocol", False):
            return core_schema.any_schema()
        return core_schema.is_instance_schema(source_type)


def _resolve(type_hint: Any, cls: type) -> Any:
    """Evaluate an annotation given as text; a name that only type checkers import allows anything."""
    if not isinstance(type_hint, str):
        return type_hint
    try:
        return eval(type_hint, vars(sys.modules[cls.__module__]), dict(vars(cls)))
    except NameError:
        return Any


def _checkable(type_hint: Any) -> Any:
    """Rewrite an annotation so that pydantic takes lists for tuples, text for paths and instances as they are."""
    hint_origin, arguments = get_origin(type_hint), get_args(type_hint)
    if type_hint is Any or type_hint is ClassVar or hint_origin in (ClassVar, Callable, type):
        return type_hint
    if hint_origin is Literal:
        return Annotated[type_hint, BeforeValidator(partial(_refuse_truth_value, arguments))]
    if type_hint is Path:
        return Annotated[Path, BeforeValidator(lambda value: Path(value) if isinstance(value, str) else value)]
    if hint_origin is Annotated:
        return Annotated[(_checkable(arguments[0]), *arguments[1:])] if len(arguments) > 1 else type_hint
    if hint_origin in (types.UnionType, Union):
        return Union[tuple(_checkable(union_member) for union_member in arguments)]  # noqa: UP007
    if hint_origin is not None and hint_origin in _CONTAINER_TYPES:
        inner_types = tuple(inner_hint if inner_hint is ... else _checkable(inner_hint) for inner_hint in arguments)
        container_type = hint_origin[inner_types if len(inner_types) > 1 else inner_types[0]]
        return _from_list(container_type, hint_origin) if hint_origin in (tuple, set, frozenset) else container_type
    if type_hint in (tuple, set, frozenset):
        return _from_list(type_hint, type_hint)
    if isinstance(type_hint, type) and type_hint not in {*_SIMPLE_TYPES, *_CONTAINER_TYPES, bytes}:
        return Annotated[type_hint, _InstanceOf]
    if isinstance(hint_origin, type):  # a generic class of this project
        return Annotated[hint_origin, _InstanceOf]
    return type_hint


def _refuse_truth_value(literal_choices: tuple[Any, ...], value: Any) -> Any:
    """Pass a value on, but not True for a choice that is 1: Python takes the two to be equal."""
    if isinstance(value, bool) and not any(literal_choice is value for literal_choice in literal_choices):
        raise PydanticCustomError("literal_error", "is none of the choices")
    return value


def _from_list(container_type: Any, container_class: type) -> Any:
    def convert_list(value: Any) -> Any:
        return container_class(value) if isinstance(value, list) else value

    return Annotated[container_type, BeforeValidator(convert_list)]
