"""Errors that a user can act on: one line that says what, where, what was got, what is expected and the way out."""

from __future__ import annotations


class EspalierError(Exception):
    """Base of every error about the user's input or environment. The command line prints it without a traceback."""


class ConfigError(EspalierError):
    """A flag, a config key or a combination of them cannot be used. `key` names the field if one is at fault."""

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
    """One row cannot be used. `reason` is a short phrase by which rejected rows are counted."""

    def __init__(
        self, reason: str, *, where: str = "", field: str = "", got: str = "", expected: str = "", fix: str = ""
    ):
        self.reason, self.where, self.field = reason, where, field
        self.got, self.expected, self.fix = got, expected, fix
        super().__init__(reason)

    def at(self, where: str) -> RowError:
        """The same error with its place filled in, where it had none."""
        return RowError(
            self.reason, where=self.where or where, field=self.field, got=self.got, expected=self.expected, fix=self.fix
        )

    def __str__(self) -> str:
        text = f"{self.where}: {self.reason}" if self.where else self.reason
        for name, value in (("field", self.field), ("got", self.got), ("expected", self.expected)):
            if value:
                text += f"; {name} {value}"
        return f"{text}. {self.fix}" if self.fix else text
