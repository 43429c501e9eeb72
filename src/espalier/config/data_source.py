"""One data source with settings of its own, and the fields that are mapped to columns, as YAML, flags and Python write
them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

from espalier.config.fields import Name, Names, NotNegative, section, show
from espalier.errors import ConfigError

_FORM = "NAME=COLUMN, NAME=PATH (such as answer=reward.truth) or NAME==TEXT for a constant"


def mapped_fields(texts: tuple[str, ...], key: str = "columns") -> dict[str, str]:
    """The fields of `--columns` with what each is read from, a constant with its `=`. Raises ConfigError for another
    form, or a field that is given twice.

    >>> mapped_fields(("prompt=problem", "system==Be kind."))
    {'prompt': 'problem', 'system': '=Be kind.'}
    """
    fields: dict[str, str] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not name.strip() or not value.strip():
            raise ConfigError(f"{key}: got {show(text)}, expected {_FORM}", key=key)
        if name in fields:
            raise ConfigError(f"{key}: {name} is given twice; expected each field once", key=key)
        fields[name] = value
    return fields


def _texts(value: Any) -> Any:
    """A mapping as a list of NAME=COLUMN, a list of columns as its names with commas, one text as a list."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Mapping):
        return value
    texts = []
    for name, column in value.items():
        if isinstance(column, list | tuple):
            column = ",".join(map(str, column))
        if not isinstance(column, str):
            raise ConfigError(f"columns: got {name}: {show(column)}, expected a column, a path or =TEXT", key="columns")
        texts.append(f"{name}={column}")
    return tuple(texts)


Mapped = Annotated[tuple[Name, ...], BeforeValidator(_texts)]
"""Fields and the columns they are read from: texts NAME=COLUMN, or a mapping."""


@section
class DataSource:
    """One data source with settings of its own."""

    path: Name
    """File, folder or hub data set."""
    format: str = ""
    """Its format; empty takes that of all data."""
    columns: Mapped = ()
    """Fields and the columns they are read from, before those of all data."""
    ignore_columns: Names = ()
    """Columns that are knowingly left out, beside those of all data."""
    share: NotNegative = 0.0
    """Its proportion relative to the other sources; 0 shares what they leave."""

    def __post_init__(self) -> None:
        mapped_fields(self.columns)

    def written(self) -> dict[str, Any]:
        """As a config file has it, without what is not given."""
        settings: dict[str, Any] = {"path": self.path}
        if self.format:
            settings["format"] = self.format
        if self.columns:
            settings["columns"] = mapped_fields(self.columns)
        if self.ignore_columns:
            settings["ignore_columns"] = list(self.ignore_columns)
        if self.share:
            settings["share"] = self.share
        return settings


def _source(value: Any) -> Any:
    """A mapping as a DataSource, anything else as it is."""
    if not isinstance(value, Mapping):
        return value
    try:
        return DataSource(**value)
    except ConfigError as error:
        raise ConfigError(f"data: {error}", key="data") from None


def _sources(value: Any) -> Any:
    """One source as a list of it, each mapping as a DataSource."""
    several = value if isinstance(value, list | tuple) else [value]
    return tuple(map(_source, several))


SourceList = Annotated[tuple[Name | DataSource, ...], BeforeValidator(_sources)]
"""Texts PATH, PATH:FORMAT=SHARE, or sources with settings of their own."""
