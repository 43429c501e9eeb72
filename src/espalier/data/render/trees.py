"""What a conversation tree holds: the conversations it branches into, and the rankings of its siblings."""

from __future__ import annotations

from collections.abc import Sequence

from espalier.errors import RowError
from espalier.types import Message, Ranking, Response, Tree


def threads(tree: Tree) -> list[list[int]]:
    """The node indices of every conversation from the root to the last assistant message before a leaf, in preorder.

    A branch that ends in a user message leaves no thread of its own where another one passes through all the rest of
    it: nothing would be learned from it.

    >>> from espalier.types import TreeNode
    >>> asked, told = Message("user", "?"), Message("assistant", "!")
    >>> nodes = [(asked, -1), (told, 0), (asked, 1), (told, 2), (told, 0), (asked, 4)]
    >>> threads(Tree(tuple(TreeNode(message, parent) for message, parent in nodes)))
    [[0, 1, 2, 3], [0, 4]]
    """
    nodes = tree.nodes
    inner = {node.parent for node in nodes}
    ends = []
    for leaf in range(len(nodes)):
        end = leaf
        while leaf not in inner and end >= 0 and nodes[end].message.role != "assistant":
            end = nodes[end].parent
        if leaf not in inner and end >= 0:
            ends.append(path(tree, end))
    passed = {i for found in ends for i in found[:-1]}
    kept: dict[int, list[int]] = {}
    for found in ends:
        if found[-1] not in passed:
            kept.setdefault(found[-1], found)
    return list(kept.values())


def path(tree: Tree, node: int) -> list[int]:
    """The indices from the root down to `node`, itself included; of node -1 there are none."""
    found = []
    while node >= 0:
        found.append(node)
        node = tree.nodes[node].parent
    return found[::-1]


def rankings(tree: Tree) -> list[Ranking | RowError]:
    """Every group of two or more sibling answers of which at least two are ranked, as a Ranking of all of them that
    shares the thread above; an answer without a rank is in it as one that nobody judged.

    The place of a group of siblings with fewer ranks is taken by a RowError. So is that of the whole tree where no
    message has two answers. What a user says is never ranked.

    >>> from espalier.types import TreeNode
    >>> asked, a, b, c = (Message(role, text) for role, text in zip(["user"] + 3 * ["assistant"], "?abc", strict=True))
    >>> nodes = [(asked, -1, None), (a, 0, 1), (asked, 1, None), (b, 2, None), (b, 0, 0), (c, 0, None)]
    >>> (found,) = rankings(Tree(tuple(TreeNode(*node) for node in nodes)))
    >>> [m.content for m in found.prompt], [(r.message.content, r.rank) for r in found.responses]
    (['?'], [('a', 1), ('b', 0), ('c', None)])
    """
    groups: dict[int, list[int]] = {}
    for i, node in enumerate(tree.nodes):
        if node.message.role == "assistant":
            groups.setdefault(node.parent, []).append(i)
    found = [_ranking(tree, parent, group) for parent, group in groups.items() if len(group) > 1]
    if not found:
        got = "one answer at most to every message"
        return [RowError("no siblings", got=got, expected="two answers to one message, with ranks")]
    return found


def _ranking(tree: Tree, parent: int, group: Sequence[int]) -> Ranking | RowError:
    prompt = tuple(tree.nodes[i].message for i in path(tree, parent))
    answers = [tree.nodes[i] for i in group]
    ranked = sum(node.rank is not None for node in answers)
    what = f"the answers to {prompt[-1].content[:40]!r}" if prompt else "the first messages"
    if ranked < 2:
        got = f"{ranked} ranked of {len(answers)}"
        return RowError("siblings without ranks", field=what, got=got, expected="at least 2 that are ranked")
    if not prompt or prompt[-1].role == "assistant":
        got = "an assistant message above them" if prompt else "no message above them"
        return RowError("nothing to answer", field=what, got=got, expected="a user message")
    if error := rank_error([node.rank for node in answers], what):
        return error
    if len({_said(node.message) for node in answers}) == 1:
        got = f"{len(answers)} answers of the same text"
        return RowError("identical responses", field=what, got=got, expected="two that differ")
    responses = tuple(Response(node.message, rank=node.rank, author=node.message.name or "") for node in answers)
    return Ranking(prompt, responses, origin=tree.origin)


def _said(message: Message) -> tuple[str, str]:
    return message.content, repr(message.tool_calls)


def rank_error(ranks: Sequence[int | None], field: str) -> RowError | None:
    """What is wrong with the ranks of siblings, 0 being the best: a gap that no unranked sibling explains.

    After b better responses the next rank may be anything from the number of distinct better ranks (as in 0, 0, 1) to
    b (as in 0, 0, 2); every sibling without a rank may stand in one more place.

    >>> [rank_error(ranks, "") is None for ranks in ([0, 0, 2], [1, 0, 0], [0, None, 2])]
    [True, True, True]
    >>> print(rank_error([0, 2], "ranks"))
    ranks with gaps; field ranks; got 0, 2; expected rank 1 after 1 better response
    """
    known = sorted(rank for rank in ranks if rank is not None)
    unknown = len(ranks) - len(known)
    for rank in known:
        better = sum(other < rank for other in known)
        if rank > better + unknown:
            got = ", ".join(map(str, known))
            expected = f"rank {better} after {better} better response{'' if better == 1 else 's'}"
            return RowError("ranks with gaps", field=field, got=got, expected=expected)
    return None
