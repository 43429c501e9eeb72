"""Conversation trees of nested messages, as Open Assistant has them.

Köpf et al., arXiv:2304.07327. A message has a `text`, a `role` (prompter or assistant) and, among its siblings, a
`rank` (0 is the best).
"""

from __future__ import annotations

from espalier.data.formats.common import Fields, empty_answer, first_key, role_of, string, wrong_type
from espalier.data.formats.format import Format
from espalier.data.formats.judged import is_whole
from espalier.errors import RowError
from espalier.types import Consumes, Message, Origin, Role, Tree, TreeNode

ROLES: dict[str, Role] = {
    "prompter": "user",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "system": "system",
}
TEXTS = ("text", "content")
AUTHORS = ("model_name",)


def looks(row: Fields, consumes: Consumes) -> bool:
    """Whether a row has a message with replies: the row itself, or its `prompt`."""
    root = row.get("prompt")
    if not isinstance(root, dict):
        root = row
    return isinstance(root.get("replies"), list) and first_key(root, TEXTS) is not None


def read_tree(row: Fields, origin: Origin) -> Tree:
    """A Tree from nested messages: `prompt` is the root, or the row itself is; `replies` are answers to a message.

    A message marked `deleted`, and all below it, is left out. Raises RowError for one that is empty, of an unknown role
    or whose rank is not a whole number.
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
        index = len(nodes)
        nodes.append(TreeNode(message_of(message, field, root=parent < 0), parent, rank_of(message, field)))
        replies = replies or []
        # The last reply goes on the stack first: the first one is taken next, so nodes stand in preorder.
        for i in reversed(range(len(replies))):
            waiting.append((replies[i], index, f"{field}.replies[{i}]".removeprefix(".")))
    return checked(nodes, origin)


def checked(nodes: list[TreeNode], origin: Origin) -> Tree:
    """The Tree of nodes in preorder. Raises RowError if none is an assistant's."""
    if not any(node.message.role == "assistant" for node in nodes):
        got, expected = f"{len(nodes)} messages, none of the assistant", "an assistant message to learn from"
        raise RowError("no assistant turn", got=got, expected=expected)
    return Tree(tuple(nodes), origin)


def message_of(row: Fields, field: str, *, root: bool) -> Message:
    """The message of a row or an object; `field` is its place in the row. Raises RowError."""
    prefix = f"{field}." if field else ""
    name = string(row, ("role",), prefix)
    role = role_of(name, ROLES, f"{prefix}role")
    if role == "system" and not root:
        expected = "a system message as root"
        raise RowError("system turn not first", field=f"{prefix}role", got="a reply", expected=expected)
    text = string(row, TEXTS, prefix)
    if role != "assistant":
        return Message(role, text)
    if not text.strip():
        raise empty_answer(f"{prefix}text", text)
    return Message(role, text, name=string(row, AUTHORS, prefix, default="") or None)


def rank_of(row: Fields, field: str) -> int | None:
    """The rank of a message among its siblings, None if it has none. Raises RowError."""
    rank = row.get("rank")
    if rank is None:
        return None
    # A column of whole numbers with gaps is often stored as floating point: 1.0 is rank 1.
    if isinstance(rank, bool) or not isinstance(rank, int | float) or rank < 0 or not is_whole(rank):
        raise wrong_type(f"{field}.rank".removeprefix("."), rank, "a whole number from 0 (the best) up, or null")
    return int(rank)


FORMAT = Format("tree", read_tree, looks)
