"""What a setting is: a dataclass field with its default, its legal range and its meaning; and settings as JSON."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from surefoot.errors import SettingError, shown


def setting(
    default: Any,
    help: str,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> Any:
    """A dataclass field that knows what it means and which numbers are legal."""
    limits = {"above": above, "at_least": at_least, "below": below, "at_most": at_most}
    return field(default=default, metadata={"help": help, "limits": {k: v for k, v in limits.items() if v is not None}})


class Following(float):
    """Final: the value of a setting that nobody gave, as it follows from others. A number like any other but that a
    sweep, which may change what it follows from, does not hold on to it."""


_LONGEST = 64  # of a sequence; a network of more layers takes minutes to make, and learns nothing

_COMPARISONS = {
    "above": ("above", lambda value, limit: value > limit),
    "at_least": ("at least", lambda value, limit: value >= limit),
    "below": ("below", lambda value, limit: value < limit),
    "at_most": ("at most", lambda value, limit: value <= limit),
}


@functools.cache
def types_of(settings_class: type) -> dict[str, Any]:
    """The type of each setting of a class, by name. Remembered, as every value that is checked asks for it."""
    return typing.get_type_hints(settings_class)


def field_of(settings_class: type, name: str) -> dataclasses.Field:
    """The dataclass field `name` of a settings class."""
    return next(item for item in dataclasses.fields(settings_class) if item.name == name)


def legal_range(limits: dict[str, float]) -> str:
    """The limits in words: `above 0 and at most 1`; `any finite number` where there are none."""
    words = [f"{_COMPARISONS[kind][0]} {limit:g}" for kind, limit in limits.items()]
    return " and ".join(words) or "any finite number"


def check(settings_class: type, name: str, value: Any, called: str | None = None) -> Any:
    """`value` as the type that the setting `name` of `settings_class` has; messages call it `called`.

    Raises SettingError where the value has another type, is not finite, or is outside the legal range.
    """
    kind = types_of(settings_class)[name]
    limits = field_of(settings_class, name).metadata.get("limits", {})
    name = called or name
    options = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        if not isinstance(value, str) or value not in options:
            raise SettingError(f"{name} must be one of {', '.join(map(repr, options))}, but {shown(value)} came")
        return value
    if type(None) in options:
        if value is None:
            return None
        (kind,) = (option for option in options if option is not type(None))
    if kind is bool:
        if not isinstance(value, bool):
            raise SettingError(f"{name} must be True or False, but {shown(value)} came")
        return value
    if kind in (int, float):
        return _check_number(name, kind, value, limits)
    if typing.get_origin(kind) is tuple:
        if isinstance(value, str) or not isinstance(value, (tuple, list)):
            raise SettingError(f"{name} must be a sequence of whole numbers, but {shown(value)} came")
        if len(value) > _LONGEST:
            raise SettingError(f"{name} must be at most {_LONGEST} whole numbers, but {len(value)} came")
        return tuple(_check_number(name, int, item, limits) for item in value)
    if not isinstance(value, kind):
        raise SettingError(f"{name} must be a {kind.__name__}, but {shown(value)} came")
    return value


def _check_number(name: str, kind: type, value: Any, limits: dict[str, float]) -> Any:
    wanted = "a whole number" if kind is int else "a number"
    try:
        # One of an array's numbers, or a truth, is a mistake even where Python converts it.
        scalar = not isinstance(value, (str, bytes, bytearray)) and not getattr(value, "ndim", 0)
        scalar = scalar and not isinstance(value, bool) and str(getattr(value, "dtype", "")) != "bool"
        number = kind(value) if scalar else math.nan
        exact = float(number) == float(value)
    except (TypeError, ValueError, ArithmeticError):
        exact = False
    legal = exact and math.isfinite(number) and all(_COMPARISONS[k][1](number, v) for k, v in limits.items())
    if not legal:
        raise SettingError(f"{name} must be {wanted}, {legal_range(limits)}, but {shown(value)} came")
    return value if isinstance(value, Following) else number


@dataclass(frozen=True)
class Settings:
    """Abstract: settings that check themselves as they are made."""

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value = check(type(self), item.name, getattr(self, item.name))
            object.__setattr__(self, item.name, value)


def as_json(value: Any) -> Any:
    """`value` with every non-finite number as one of the strings "inf", "-inf", "nan", ready for JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return as_json(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


def dumps(value: Any, **options: Any) -> str:
    """JSON text of `value` that any strict reader accepts."""
    return json.dumps(as_json(value), allow_nan=False, **options)


def digest(value: Any) -> str:
    """The SHA-256 of a value's JSON text, which is the same again for what that text is read as."""
    return hashlib.sha256(dumps(value).encode()).hexdigest()
