"""What a conversation tree holds: the conversations it branches into, and the rankings of its siblings."""

from __future__ import annotations

from collections.abc import Sequence

from espalier.errors import RowError
from espalier.types import Ranking, Response, Tree


def threads(tree: Tree) -> list[list[int]]:
    """The node indices of every conversation from the root to the last assistant message before a leaf, in preorder.

    A branch that ends in a user message leaves no thread of its own if another one passes through all the rest of it:
    nothing would be learned from it.

    >>> from espalier.types import Message, TreeNode
    >>> question, answer = Message("user", "?"), Message("assistant", "!")
    >>> nodes = [(question, -1), (answer, 0), (question, 1), (answer, 2), (answer, 0), (question, 4)]
    >>> threads(Tree(tuple(TreeNode(message, parent) for message, parent in nodes)))
    [[0, 1, 2, 3], [0, 4]]
    """
    nodes = tree.nodes
    inner = {node.parent for node in nodes}
    paths: list[list[int]] = []
    for leaf in range(len(nodes)):
        if leaf in inner:
            continue
        end = leaf
        while end >= 0 and nodes[end].message.role != "assistant":
            end = nodes[end].parent
        if end >= 0:
            paths.append(path(tree, end))
    passed: set[int] = set()
    for thread in paths:
        passed.update(thread[:-1])
    # Several leaves below one answer end in the same thread, which counts once, in the place of the
    # first.
    kept: dict[int, list[int]] = {}
    for thread in paths:
        if thread[-1] not in passed:
            kept.setdefault(thread[-1], thread)
    return list(kept.values())


def path(tree: Tree, node: int) -> list[int]:
    """The indices from the root down to `node`, itself included; of node -1 there are none."""
    upward = []
    while node >= 0:
        upward.append(node)
        node = tree.nodes[node].parent
    return upward[::-1]


def rankings(tree: Tree) -> list[Ranking | RowError]:
    """Every group of two or more sibling answers of which at least two are ranked, as a Ranking of all of them that
    shares the thread above; an answer without a rank is in it as one that is not judged.

    A RowError takes the place of a group of siblings with fewer ranks, and of the whole tree if no message has two
    answers. What a user says is never ranked.

    >>> from espalier.types import Message, TreeNode
    >>> question, a, b, c = Message("user", "?"), *(Message("assistant", text) for text in "abc")
    >>> nodes = [(question, -1, None), (a, 0, 1), (question, 1, None), (b, 2, None), (b, 0, 0), (c, 0, None)]
    >>> (ranking,) = rankings(Tree(tuple(TreeNode(*node) for node in nodes)))
    >>> [m.content for m in ranking.prompt], [(r.message.content, r.rank) for r in ranking.responses]
    (['?'], [('a', 1), ('b', 0), ('c', None)])
    """
    groups: dict[int, list[int]] = {}
    for i, node in enumerate(tree.nodes):
        if node.message.role == "assistant":
            groups.setdefault(node.parent, []).append(i)
    result = [_ranking(tree, parent, group) for parent, group in groups.items() if len(group) > 1]
    if not result:
        got = "one answer at most to every message"
        return [RowError("no siblings", got=got, expected="two answers to one message, with ranks")]
    return result


def _ranking(tree: Tree, parent: int, group: Sequence[int]) -> Ranking | RowError:
    """The answers `group` to the message `parent`, or why they are no ranking."""
    prompt = tuple(tree.nodes[i].message for i in path(tree, parent))
    answers = [tree.nodes[i] for i in group]
    ranked = sum(node.rank is not None for node in answers)
    field = "the first messages"
    if prompt:
        field = f"the answers to {prompt[-1].content[:40]!r}"
    if ranked < 2:
        got = f"{ranked} ranked of {len(answers)}"
        expected = "at least 2 that are ranked"
        return RowError("siblings without ranks", field=field, got=got, expected=expected)
    if not prompt or prompt[-1].role == "assistant":
        got = "an assistant message above them" if prompt else "no message above them"
        return RowError("nothing to answer", field=field, got=got, expected="a user message")
    error = rank_error([node.rank for node in answers], field)
    if error:
        return error
    # Repr: calls are dicts of any depth, which have no hash.
    texts = {(node.message.content, repr(node.message.tool_calls)) for node in answers}
    if len(texts) == 1:
        got = f"{len(answers)} answers of the same text"
        return RowError("identical responses", field=field, got=got, expected="two that differ")
    responses = []
    for node in answers:
        responses.append(Response(node.message, rank=node.rank, author=node.message.name or ""))
    return Ranking(prompt, tuple(responses), origin=tree.origin)


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
