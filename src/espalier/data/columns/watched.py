"""Rows that remember which of their keys a reader took, so that formats need no bookkeeping of their own."""

from __future__ import annotations

from collections.abc import ItemsView, Mapping, Sequence, ValuesView
from typing import Any


class WatchedRow(dict[str, Any]):
    """A row, or an object inside one, that remembers the keys whose values were looked up with `[]` or `get`.

    taken: these keys, each with the name of the field that it was read as; keys that are null are not among them.
    rivals: further names under which a field that was read could have stood.

    >>> row = WatchedRow(question="1 + 1?", answer="2", source="web")
    >>> row.offer("question", ("prompt", "question"))
    >>> row["question"], row.get("answer"), row.get("system")
    ('1 + 1?', '2', None)
    >>> row.taken, sorted(row.rivals)
    ({'question': 'prompt', 'answer': 'answer'}, ['prompt', 'question'])
    """

    __slots__ = ("_offers", "rivals", "taken")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.taken: dict[str, str] = {}
        self.rivals: set[str] = set()
        self._offers: dict[str, Sequence[str]] = {}

    def offer(self, key: str, names: Sequence[str]) -> None:
        """Note that `key` is the one of `names` under which a field stands, if its value is looked up next."""
        self._offers[key] = names

    def take(self, key: str) -> None:
        """Note that the value under `key` is read."""
        if dict.get(self, key) is None:
            return
        names = self._offers.pop(key, None)
        if names is None:
            self.taken.setdefault(key, key)
            return
        self.taken.setdefault(key, names[0])
        if len(names) > 1:
            self.rivals.update(names)

    def __getitem__(self, key: str) -> Any:
        value = _value(self, key)
        if value is not None:
            self.take(key)
        return value

    def get(self, key: str, default: Any = None) -> Any:
        # First what readers mostly ask for: keys that a row does not have.
        if key not in self:
            return default
        return self[key]

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        """All keys and values, which are read by that."""
        self._take_all()
        return dict.items(self)

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        """All values, which are read by that."""
        self._take_all()
        return dict.values(self)

    def _take_all(self) -> None:
        for key in self:
            self.take(key)

    def copy(self) -> WatchedRow:
        """Another row of the same values, which shares the record of what was taken."""
        same = WatchedRow(self)
        same.taken, same.rivals = self.taken, self.rivals
        return same


_value = dict.__getitem__
_NESTED = (dict, list)


def watched(value: Any) -> Any:
    """The same JSON value with every object in it, at all depths, as a WatchedRow."""
    if isinstance(value, dict):
        row = WatchedRow(value)
        for key, inner in dict.items(value):
            if isinstance(inner, _NESTED):
                row[key] = watched(inner)
        return row
    if isinstance(value, list):
        return [watched(inner) if isinstance(inner, _NESTED) else inner for inner in value]
    return value


def plain(value: Any) -> Any:
    """The same JSON value with every object in it as a plain dict: what is kept whole counts as read whole."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in dict.items(value)}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return value


def peek(row: Mapping[str, Any], key: str) -> Any:
    """The value under a key, None if there is none; a WatchedRow does not count that as reading it."""
    return dict.get(row, key) if isinstance(row, dict) else row.get(key)
