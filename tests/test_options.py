"""Options classes: what they take, what they refuse, and in which words."""

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import pytest

from gradfiltering.errors import UserError
from gradfiltering.options import (
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Share,
    ShareBelowOne,
    field,
    model_validator,
    options,
)


class Speaker(Protocol):
    def speak(self) -> str: ...


class Dog:
    def speak(self) -> str:
        return "wow"


@options
class Inner:
    """Options within options."""

    rank: PositiveInt = 8


@options
class Base:
    """Options of every simple kind."""

    m: PositiveInt | Literal["auto"] = 5
    lr: PositiveFloat = 1e-3
    share: Share = 1.0
    heldout: ShareBelowOne = 0.0
    dropout: Probability = 0.0
    betas: tuple[PositiveFloat, PositiveFloat] = (0.9, 0.999)
    names: tuple[str, ...] | None = None
    mode: Literal["snapshot", "online"] = "snapshot"
    path: Path | None = None
    inner: Inner = Inner()
    speaker: Speaker | None = None
    formula: Callable[..., Any] | None = None
    files: Sequence[str] = ()
    weights: Mapping[str, float] | None = None
    named_numbers: Mapping[str, float] = field(default_factory=dict)
    table: np.ndarray | None = None
    flag: bool = False
    ddof: Literal[0, 1] = 0
    unknown: "NotImported | None" = None  # noqa: F821

    resampled: ClassVar[bool] = False


@options
class Derived(Base):
    """Options with a rule over two of them."""

    early: NonNegativeInt = 1
    late: NonNegativeInt = 2

    @model_validator(mode="after")
    def _check_order(self):
        if self.early >= self.late:
            raise UserError("early must come before late", arguments=("early", "late"))
        return self


def test_values_of_the_right_type_are_taken():
    made = Derived(m="auto", lr=1, betas=[0.5, 1], names=["a"], path="x", speaker=Dog(), files=["a"], late=3)
    assert made.lr == 1.0 and made.betas == (0.5, 1.0) and made.names == ("a",) and made.path == Path("x")
    assert made.speaker.speak() == "wow" and not made.resampled and asdict(made)["inner"] == {"rank": 8}
    assert Derived(weights={"a": 1}, table=np.zeros(2), formula=max).weights == {"a": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"m": 0}, "m must be a positive whole number or auto, got 0"),
        ({"m": True}, "m must be a positive whole number or auto, got True"),
        ({"m": 2.5}, "m must be a positive whole number or auto, got 2.5"),
        ({"lr": "a"}, "lr must be a positive number, got 'a'"),
        ({"lr": float("nan")}, "lr must be a positive number, got nan"),
        ({"lr": float("inf")}, "lr must be a positive number, got inf"),
        ({"share": 0}, "share must be a number in (0, 1], got 0"),
        ({"heldout": 1.0}, "heldout must be a number in [0, 1), got 1.0"),
        ({"mode": "never"}, "mode must be one of: snapshot, online, got 'never'"),
        ({"early": -1}, "early must be a non-negative whole number, got -1"),
        ({"inner": {"rank": 3}}, "inner must be a Inner"),
        ({"betas": [0.5, -1]}, "betas[1] must be a positive number, got -1"),
        ({"betas": [0.5]}, "betas must be a list"),
        ({"named_numbers": {"a": "b"}}, "named_numbers.a must be a number, got 'b'"),
        ({"ddof": True}, "ddof must be one of: 0, 1, got True"),
        ({"flag": 1}, "flag must be true or false, got 1"),
        ({"early": 2}, "early must come before late"),
        ({"nothing": 2}, "Derived has no argument nothing; it has m, lr"),
    ],
)
def test_wrong_values_are_refused_in_one_sentence(arguments, message):
    with pytest.raises(UserError) as refused:
        Derived(**arguments)
    assert str(refused.value).startswith(message)
    assert refused.value.owner is Derived and next(iter(arguments)) in refused.value.arguments[0]


def test_options_are_frozen_and_can_be_pickled_and_replaced():
    made = Derived(m=3)
    assert pickle.loads(pickle.dumps(made)) == made == replace(Derived(), m=3)
    with pytest.raises(AttributeError):
        made.m = 4
    with pytest.raises(UserError):
        replace(made, early=9)
