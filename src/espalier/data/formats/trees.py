"""Conversation trees as Open Assistant has them: nested messages, or rows that name their parent.

Köpf et al., arXiv:2304.07327. A message has a `text`, a `role` (prompter or assistant) and, among its siblings, a
`rank` (0 is the best).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from espalier.data.files.json_rows import Row
from espalier.data.formats.common import Fields, empty_answer, first_key, missing, shown, string, wrong_type
from espalier.errors import RowError, nearest
from espalier.types import Message, Origin, Role, Tree, TreeNode

ROLES: dict[str, Role] = {
    "prompter": "user",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "system": "system",
}
IDS = ("user_message_id", "message_id", "id")
PARENTS = ("parent_message_id", "parent_id", "parent")
TEXTS = ("text", "content")
AUTHORS = ("model_name",)


def is_tree(row: Fields) -> bool:
    """Whether a row's keys are those of a tree of nested messages."""
    root = row.get("prompt")
    root = root if isinstance(root, dict) else row
    return isinstance(root.get("replies"), list) and first_key(root, TEXTS) is not None


def is_node(row: Fields) -> bool:
    """Whether a row's keys are those of one message of a tree: it names its parent, which may be null."""
    named = any(key in row for key in PARENTS)
    return named and bool(first_key(row, IDS) and first_key(row, TEXTS)) and "role" in row


def read_tree(row: Fields, origin: Origin) -> Tree:
    """A Tree from nested messages: `prompt` is the root, or the row itself is; `replies` are answers to a message.

    A message marked `deleted`, and all below it, is left out. Raises RowError for one that is empty, of an unknown role
    or has no whole rank.
    """
    root, nodes = row.get("prompt"), list[TreeNode]()
    waiting = [(root, -1, "prompt")] if isinstance(root, dict) else [(row, -1, "")]
    while waiting:
        message, parent, field = waiting.pop()
        if not isinstance(message, dict):
            raise wrong_type(field, message, "a message with text, role and replies")
        if message.get("deleted") is True:
            continue
        replies = message.get("replies")
        if replies is not None and not isinstance(replies, list):
            raise wrong_type(f"{field}.replies", replies, "a list of messages")
        at = len(nodes)
        nodes.append(TreeNode(_message(message, field, parent < 0), parent, _rank(message, field)))
        below = [(reply, at, f"{field}.replies[{i}]".removeprefix(".")) for i, reply in enumerate(replies or ())]
        waiting += reversed(below)  # the first reply is taken next, so nodes stand in preorder
    return _checked(nodes, origin)


def _checked(nodes: list[TreeNode], origin: Origin) -> Tree:
    if not any(node.message.role == "assistant" for node in nodes):
        got, expected = f"{len(nodes)} messages, none of the assistant", "an assistant message to learn from"
        raise RowError("no assistant turn", got=got, expected=expected)
    return Tree(tuple(nodes), origin)


def _message(row: Fields, field: str, root: bool) -> Message:
    dot = f"{field}." if field else ""
    name = string(row, ("role",), dot)
    role = ROLES.get(name)
    if role is None:
        expected = ", ".join(ROLES)
        raise RowError("unknown role", field=f"{dot}role", got=shown(name), expected=expected, fix=nearest(name, ROLES))
    if role == "system" and not root:
        raise RowError("system turn not first", field=f"{dot}role", got="a reply", expected="a system message as root")
    text = string(row, TEXTS, dot)
    if role == "assistant" and not text.strip():
        raise empty_answer(f"{dot}text", text)
    return Message(role, text, name=string(row, AUTHORS, dot, default="") or None if role == "assistant" else None)


def _rank(row: Fields, field: str) -> int | None:
    rank = row.get("rank")
    if rank is None:
        return None
    if isinstance(rank, bool) or not isinstance(rank, int | float) or rank < 0 or rank != int(rank):
        raise wrong_type(f"{field}.rank".removeprefix("."), rank, "a whole number from 0 (the best) up, or null")
    return int(rank)


# ------------------------------------------------------------------------------------------------ one message a row


@dataclass(slots=True)
class _Found:
    """A message of the file. `below` are the places of its answers."""

    line: int
    message: Message
    parent: str | None
    rank: int | None
    below: list[int]


def read_nodes(rows: Iterable[Row | RowError], path: str, source: str) -> Iterator[Tree | RowError]:
    """The trees of a file whose rows are single messages that name their parent (null for a root), in any order.

    Every tree has its root's line. All messages of the file are held at once, since any row may belong to any tree.
    A row is in a tree or has a RowError: one that cannot be read, repeats an id, or whose parent is missing or has a
    RowError itself, all messages below it included.
    """
    found: list[_Found] = []
    places: dict[str, int] = {}
    for row in rows:
        if isinstance(row, RowError):
            yield row
            continue
        try:
            name, node = _node(row.value, row.line)
            if name in places:
                first = found[places[name]].line
                raise RowError(
                    "duplicate id", field=name, got=f"the id of line {first}", expected="one row for each id"
                )
        except RowError as e:
            yield e.at(f"{path}:{row.line}")
        else:
            places[name] = len(found)
            found.append(node)
    for place, node in enumerate(found):
        if node.parent in places:
            found[places[node.parent]].below.append(place)
    reached: set[int] = set()
    for place, node in enumerate(found):
        if node.parent is None:
            order = _preorder(found, place)
            reached.update(i for i, _ in order)
            nodes = [TreeNode(found[i].message, parent, found[i].rank) for i, parent in order]
            try:
                yield _checked(nodes, Origin(source, node.line))
            except RowError as e:
                yield e.at(f"{path}:{node.line}")
    for place, node in enumerate(found):
        if place not in reached:
            got = f"parent {node.parent}"
            expected = "a parent whose row is in the file and can be used"
            yield RowError("parent not found", got=got, expected=expected).at(f"{path}:{node.line}")


def _node(row: Any, line: int) -> tuple[str, _Found]:
    if not isinstance(row, dict):
        raise wrong_type("", row, "a JSON object")
    name, key = string(row, IDS), next((key for key in PARENTS if key in row), None)
    if key is None:
        raise missing(PARENTS[0], row, " or ".join(PARENTS))
    parent = string(row, (key,), default="") or None
    return name, _Found(line, _message(row, "", parent is None), parent, _rank(row, ""), [])


def _preorder(found: list[_Found], root: int) -> list[tuple[int, int]]:
    """The places of a tree's messages, each with the number of its parent in this order."""
    order: list[tuple[int, int]] = []
    waiting = [(root, -1)]
    while waiting:
        place, parent = waiting.pop()
        at = len(order)
        order.append((place, parent))
        waiting += [(below, at) for below in reversed(found[place].below)]
    return order
