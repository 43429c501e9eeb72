"""Conversation trees with one message a row, which names its parent, as Open Assistant has them (see `tree`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from espalier.data.files.json_rows import Row
from espalier.data.formats.common import Fields, first_key, missing, string, wrong_type
from espalier.data.formats.format import Format
from espalier.data.formats.tree import TEXTS, checked, message_of, rank_of
from espalier.errors import RowError
from espalier.types import Consumes, Message, Origin, Tree, TreeNode

IDS = ("user_message_id", "message_id", "id")
PARENTS = ("parent_message_id", "parent_id", "parent")


def looks(row: Fields, consumes: Consumes) -> bool:
    """Whether a row is a message that names its parent, which may be null."""
    if _parent_key(row) is None or "role" not in row:
        return False
    return first_key(row, IDS) is not None and first_key(row, TEXTS) is not None


def _parent_key(row: Fields) -> str | None:
    """The key under which a row names its parent, null or not."""
    for key in PARENTS:
        if key in row:
            return key
    return None


@dataclass(slots=True)
class _Node:
    """A message of the file. `replies` are the places of its answers among all messages."""

    line: int
    message: Message
    parent: str | None
    rank: int | None
    replies: list[int] = field(default_factory=list)


def read_nodes(rows: Iterable[Row | RowError], path: str, source: str) -> Iterator[Tree | RowError]:
    """The trees of a file whose rows are single messages that name their parent (null for a root), in any order.

    Every tree has its root's line. All messages of the file are held at once, since any row may belong to any tree.
    A row is in a tree or has a RowError: one that cannot be read, repeats an id, or whose parent is missing or has a
    RowError itself, all messages below it included.
    """
    nodes: list[_Node] = []
    places: dict[str, int] = {}
    for row in rows:
        if isinstance(row, RowError):
            yield row
            continue
        try:
            name, node = _node(row.value, row.line)
            if name in places:
                got = f"the id of line {nodes[places[name]].line}"
                raise RowError("duplicate id", field=name, got=got, expected="one row for each id")
        except RowError as error:
            yield error.at(f"{path}:{row.line}")
        else:
            places[name] = len(nodes)
            nodes.append(node)
    # After all rows: an answer may stand before the message that it answers.
    for place, node in enumerate(nodes):
        if node.parent in places:
            nodes[places[node.parent]].replies.append(place)
    yield from _trees(nodes, path, source)


def _trees(nodes: list[_Node], path: str, source: str) -> Iterator[Tree | RowError]:
    """The tree below each root, then a RowError for each message that is in none."""
    reached: set[int] = set()
    for place, root in enumerate(nodes):
        if root.parent is not None:
            continue
        order = _preorder(nodes, place)
        reached.update(i for i, _ in order)
        tree = [TreeNode(nodes[i].message, parent, nodes[i].rank) for i, parent in order]
        try:
            yield checked(tree, Origin(source, root.line))
        except RowError as error:
            yield error.at(f"{path}:{root.line}")
    for place, node in enumerate(nodes):
        if place not in reached:
            got = f"parent {node.parent}"
            expected = "a parent whose row is in the file and can be used"
            yield RowError("parent not found", got=got, expected=expected).at(f"{path}:{node.line}")


def _node(row: Any, line: int) -> tuple[str, _Node]:
    """The id of a message, and the message."""
    if not isinstance(row, dict):
        raise wrong_type("", row, "a JSON object")
    name, key = string(row, IDS), _parent_key(row)
    if key is None:
        raise missing(PARENTS[0], row, " or ".join(PARENTS))
    parent = string(row, (key,), default="") or None
    return name, _Node(line, message_of(row, "", root=parent is None), parent, rank_of(row, ""))


def _preorder(nodes: list[_Node], root: int) -> list[tuple[int, int]]:
    """The places of a tree's messages, each with the number of its parent in this order."""
    order: list[tuple[int, int]] = []
    waiting = [(root, -1)]
    while waiting:
        place, parent = waiting.pop()
        number = len(order)
        order.append((place, parent))
        waiting += [(reply, number) for reply in reversed(nodes[place].replies)]
    return order


FORMAT = Format("nodes", read_nodes, looks, "file")
