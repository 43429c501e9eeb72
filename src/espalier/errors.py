"""Errors that a user can act on: one line that says what, where, what was got, what is expected and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EspalierError(Exception):
    """Base of every error about the user's input or environment. The command line prints it without a traceback."""


class ConfigError(EspalierError):
    """A flag, a config key or a combination of them cannot be used. `key` names the field at fault, if there is one."""

    def __init__(self, message: str, *, key: str = ""):
        self.key = key
        super().__init__(message)


class ModelError(EspalierError):
    """A model or tokenizer directory cannot be used."""


class DataError(EspalierError):
    """A data file or data set cannot be read at all. One row that cannot be used is a RowError."""


class CheckpointError(EspalierError):
    """A checkpoint is incomplete, corrupt or belongs to another run."""


class CheckError(EspalierError):
    """A check before training found that this run would train the wrong thing."""


class RowError(EspalierError):
    """One row cannot be used. `reason` is a short phrase by which rejected rows are counted.

    >>> print(RowError("wrong type", where="a.jsonl:3", field="answer", got="number 5", expected="a string"))
    a.jsonl:3: wrong type; field answer; got number 5; expected a string
    """

    def __init__(
        self, reason: str, *, where: str = "", field: str = "", got: str = "", expected: str = "", fix: str = ""
    ):
        self.reason, self.where, self.field = reason, where, field
        self.got, self.expected, self.fix = got, expected, fix.strip()
        super().__init__(reason)

    def at(self, where: str) -> RowError:
        """The same error at the place `where`, unless it names one already."""
        return RowError(
            self.reason, where=self.where or where, field=self.field, got=self.got, expected=self.expected, fix=self.fix
        )

    def __str__(self) -> str:
        text = f"{self.where}: {self.reason}" if self.where else self.reason
        for name, value in (("field", self.field), ("got", self.got), ("expected", self.expected)):
            if value:
                text += f"; {name} {value}"
        return f"{text}. {self.fix}" if self.fix else text


def nearest(word: object, known: Iterable[str]) -> str:
    """A sentence that suggests the known word closest to `word`, with a blank before it; empty if none is close.

    Case does not count, nor whether words are joined by hyphens or underscores.

    >>> nearest("Samples-per-stp", ["samples_per_step", "steps"]), nearest("x", ["steps"])
    (' Did you mean samples_per_step?', '')
    """
    names = {_folded(name): name for name in known}
    close = difflib.get_close_matches(_folded(word), list(names), n=1, cutoff=0.6)
    return f" Did you mean {names[close[0]]}?" if close else ""


def _folded(word: object) -> str:
    return str(word).strip().lower().replace("-", "_")
