"""What a config field is: its type, its limits, and the one line that says why a value cannot be used.

`section` makes a class a frozen dataclass whose values are checked when it is built, from Python as from a file or a
flag. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import reprlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar, cast, dataclass_transform, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BeforeValidator, ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass
from pydantic.fields import FieldInfo

from espalier.errors import ConfigError, nearest

T = TypeVar("T")


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("true and false are no numbers")
    return value


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


OneOrMany = BeforeValidator(_one_or_many)
"""A single text stands for a list of one."""
Integer = Annotated[int, BeforeValidator(_not_bool)]
Number = Annotated[float, BeforeValidator(_not_bool)]
Positive = Annotated[Number, Gt(0)]
NotNegative = Annotated[Number, Ge(0)]
Fraction = Annotated[Number, Ge(0), Le(1)]
Share = Annotated[Number, Ge(0), Lt(1)]
Count = Annotated[Integer, Ge(1)]
CountOrZero = Annotated[Integer, Ge(0)]
Seed = Annotated[Integer, Ge(0), Lt(2**63)]
Name = Annotated[str, MinLen(1)]
Names = Annotated[tuple[Name, ...], OneOrMany]


@dataclasses.dataclass(frozen=True)
class Known:
    """Annotation of a field that holds names: which names there are, each with what it is, for the help."""

    names: Mapping[str, str]


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def section(cls: type[T]) -> type[T]:
    """Make `cls` a frozen dataclass that raises ConfigError, in one line, for a value its field cannot hold.

    The text under a field is its help, which subclasses keep. Numbers may come as text ("2e-5"), as YAML and the
    command line give them; infinity and nan are refused, and so are unknown fields.
    """
    config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
    built = checked_dataclass(frozen=True, config=config)(cls)
    for name, info in infos(built).items():
        info.description = info.description or _inherited_help(built, name)
    construct: Any = built.__init__

    @functools.wraps(construct)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            construct(self, *args, **kwargs)
        except ValidationError as error:
            raise _explain(error, built) from None

    built.__init__ = init  # type: ignore[method-assign]
    return cast(type[T], built)


def _inherited_help(cls: type, name: str) -> str | None:
    """The help of a field in the nearest parent section that has one."""
    for base in cls.__mro__[1:]:
        if "__pydantic_fields__" in vars(base):
            info = infos(base).get(name)
            if info is not None and info.description:
                return info.description
    return None


def infos(cls: type) -> dict[str, FieldInfo]:
    """The fields of a section by name, with annotation, limits, default and help text (`description`)."""
    fields: dict[str, FieldInfo] = cls.__pydantic_fields__  # type: ignore[attr-defined]
    return fields


def expected(info: FieldInfo) -> str:
    """What a field holds, in words.

    >>> expected(FieldInfo(annotation=float, metadata=[Gt(0)]))
    'a number > 0'
    """
    kind: Any = info.annotation
    several, choices, limits = get_origin(kind) is tuple, literals(kind), _limits(info.metadata)
    if choices:
        words = choices[0]
        if len(choices) > 1:
            words = f"{', '.join(choices[:-1])} or {choices[-1]}"
        return f"a list of {words}" if several else words
    if several:
        return "a list of one or more texts" if limits else "a list of texts"
    if kind is str:
        return "text that is not empty" if limits else "text"
    words = {int: "a whole number", float: "a number", bool: "true or false"}.get(kind) or f"a {kind.__name__}"
    return f"{words} {limits}".rstrip()


def literals(kind: Any) -> tuple[str, ...]:
    """The choices of a Literal, or of a list of them; none for any other type."""
    if get_origin(kind) is tuple:
        kind = get_args(kind)[0]
    return get_args(kind) if get_origin(kind) is Literal else ()


def _limits(metadata: Iterable[Any]) -> str:
    """The limits of a field in words; empty if it has none."""
    limits = []
    for limit in metadata:
        match limit:
            case Gt(gt=x):
                limits.append(f"> {x}")
            case Ge(ge=x):
                limits.append(f">= {x}")
            case Lt(lt=x):
                limits.append(f"< {x}")
            case Le(le=x):
                limits.append(f"<= {x}")
            case MinLen():
                limits.append("not empty")
    return " and ".join(limits)


def named_weights(
    texts: Iterable[str], key: str, known: Iterable[str] = (), *, positive: bool = False, bare: bool = True
) -> dict[str, float]:
    """The weights that field `key` gives to names, each as NAME=WEIGHT or, with `bare`, NAME alone, which weighs 1.

    >>> named_weights(["helpful=3", "brief"], "dimensions")
    {'helpful': 3.0, 'brief': 1.0}

    Without `bare` the names come from data and may hold the sign themselves, so the last one decides. Raises
    ConfigError for a name that is empty, given twice, or not one of `known` (any, if that is empty), and for a weight
    that is not a finite number, or, with `positive`, not above 0.
    """
    weights: dict[str, float] = {}
    for text in texts:
        name, equals, number = text.partition("=") if bare else text.rpartition("=")
        if known and name not in known:
            way_out = nearest(name, known)
            raise ConfigError(f"{key}: got {text!r}, expected one of {', '.join(known)}.{way_out}", key=key)
        weight = 1.0 if bare and not equals else _number(number)
        if not name or name in weights or not math.isfinite(weight) or (positive and weight <= 0):
            form = name or "NAME"
            forms = f"{form} or {form}=WEIGHT" if bare else f"{form}=WEIGHT, such as helpful=1"
            limit = " above 0" if positive else ""
            raise ConfigError(f"{key}: got {text!r}, expected {form} once, as {forms}{limit}", key=key)
        weights[name] = weight
    return weights


def _number(text: str) -> float:
    """The number that a text is; nan if it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxdict = 2, 12, 12, 12
_SHORT.maxstring, _SHORT.maxlong, _SHORT.maxother = 100, 100, 100


def show(value: Any) -> str:
    """A value as an error prints it: short, on one line."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    # Cut before it is written out: lists that hold one another many times have no end.
    text = _SHORT.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _explain(error: ValidationError, cls: type) -> ConfigError:
    """The first fault of a section, as one line with key, got, expected and the way out."""
    first = error.errors(include_url=False)[0]
    known = infos(cls)
    key, got = str(first["loc"][0]), first["input"]
    if first["type"] in ("unexpected_keyword_argument", "unexpected_positional_argument"):
        return ConfigError(f"{key}: no such field.{nearest(key, known)}", key=key)
    info = known[key]
    if first["type"] in ("missing", "missing_argument"):
        return ConfigError(f"{key}: got nothing, expected {expected(info)}. {info.description or ''}".rstrip(), key=key)
    if isinstance(got, str) and literals(info.annotation):
        way_out = nearest(got, literals(info.annotation))
    elif isinstance(got, dict):
        way_out = " Configs are flat: every key stands at the top level."
    else:
        default = None if info.is_required() else info.get_default(call_default_factory=True)
        way_out = f" The default is {show(default)}." if default not in (None, "", ()) else ""
    return ConfigError(f"{key}: got {show(got)}, expected {expected(info)}.{way_out}", key=key)
