"""The trie of one group: which runs of tokens its samples share, as segments in preorder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from espalier.types import Sample

MIN_SHARED = 16
"""Tokens from which a shared run is a segment of its own: a shorter one costs less as a copy in each child."""


def laid_length(sample: Sample) -> int:
    """How many of a sample's tokens must go through the model: up to the last one that something is read at.

    Token i is scored at the position of token i - 1, so the last trained token itself is not laid down unless a scalar
    head reads it. What follows the last trained token predicts nothing and is left out.
    """
    last = next((i for i in range(len(sample.mask) - 1, 0, -1) if sample.mask[i]), 0)
    return max([last, *(read + 1 for read in sample.reads)])


def common_prefix(a: Sequence[int], b: Sequence[int], start: int = 0) -> int:
    """Length of the longest common prefix of a and b[start:], by bisection over slice comparisons (which run in C)."""
    high = min(len(a), len(b) - start)
    if a[:high] == b[start : start + high]:
        return high
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[start + low : start + middle]:
            low = middle
        else:
            high = middle
    return low


@dataclass(slots=True, eq=False)
class Node:
    """A run of tokens and what continues it. `ends` are the indices of the samples whose laid tokens end inside it."""

    tokens: list[int]
    children: list[Node] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def child(self, token: int) -> Node | None:
        """The child that begins with `token`; children differ in their first tokens."""
        for child in self.children:
            if child.tokens[0] == token:
                return child
        return None


def _insert(root: Node, tokens: list[int], index: int) -> None:
    """Add the laid tokens of sample `index`, splitting the node that they leave half way."""
    node, done = root, 0
    while True:
        if done == len(tokens):
            node.ends.append(index)
            return
        child = node.child(tokens[done])
        if child is None:
            node.children.append(Node(tokens[done:], ends=[index]))
            return
        shared = common_prefix(child.tokens, tokens, done)
        # The sample ends inside the child: its tokens are all there, and nothing is split.
        if done + shared == len(tokens):
            child.ends.append(index)
            return
        # The sample continues a leaf: nothing branches off there, so the leaf grows.
        if shared == len(child.tokens) and not child.children:
            child.tokens = tokens[done:]
            child.ends.append(index)
            return
        if shared < len(child.tokens):
            # Samples that end inside the child move to its lower part: a path may be longer than a
            # sample, never shorter.
            lower = Node(child.tokens[shared:], child.children, child.ends)
            child.tokens, child.children, child.ends = child.tokens[:shared], [lower], []
        node, done = child, done + shared


def _copy_short_runs(root: Node) -> None:
    """Copy every shared run below MIN_SHARED tokens into what continues it, from the root down."""
    parents = [root]
    while parents:
        parent = parents.pop()
        todo, parent.children = parent.children[::-1], []
        while todo:
            child = todo.pop()
            if child.children and len(child.tokens) < MIN_SHARED:
                for grandchild in child.children:
                    grandchild.tokens = child.tokens + grandchild.tokens
                child.children[0].ends = child.ends + child.children[0].ends
                todo.extend(reversed(child.children))
            else:
                parent.children.append(child)
        parents.extend(parent.children)


@dataclass(slots=True)
class Placed:
    """A node in preorder: `start` counts packed tokens from the group's first; see `types.Segment` for the rest."""

    tokens: list[int]
    start: int
    parent: int
    depth: int
    leave: int = 0


@dataclass(slots=True)
class Trie:
    """Segments in preorder, and for each sample the segments on its path, root first."""

    nodes: list[Placed]
    paths: list[list[int]]
    size: int

    def where(self, sample: int, count: int) -> list[int]:
        """Packed positions, from the group's first, of the first `count` tokens of a sample."""
        places: list[int] = []
        for i in self.paths[sample]:
            node = self.nodes[i]
            # A path may be longer than its sample, so the last nodes are cut (to nothing, if need
            # be).
            take = min(len(node.tokens), count - len(places))
            places.extend(range(node.start, node.start + take))
        return places


def build(samples: Sequence[Sample], *, share: bool = True) -> Trie:
    """Lay the samples of one group down.

    Worked example (runs are shared here although they are short): [P P P A A] and [P P P B B B], answers trained, lay
    down P P P A B B; the last P predicts A and B, and no leaf's last token is there.
    """
    laid = [s.tokens[: laid_length(s)] for s in samples]
    if len(samples) == 1 or not share:
        return _separate(laid)
    root = Node([])
    for i, tokens in enumerate(laid):
        _insert(root, tokens, i)
    _copy_short_runs(root)
    nodes: list[Placed] = []
    paths: list[list[int]] = [[] for _ in samples]
    # A stack rather than recursion: a conversation tree may be deeper than Python recurses.
    # Children are pushed in reverse, so that they are popped, and numbered, in order. Samples that
    # end in the root have nothing to lay down (one token, or nothing trained) and keep an empty
    # path.
    stack: list[tuple[Node, int, int, list[int]]] = [(child, -1, 0, []) for child in reversed(root.children)]
    start = 0
    while stack:
        node, parent, depth, path = stack.pop()
        index = len(nodes)
        nodes.append(Placed(node.tokens, start, parent, depth))
        path = [*path, index]
        for i in node.ends:
            paths[i] = path
        start += len(node.tokens)
        stack.extend((child, index, depth + len(node.tokens), path) for child in reversed(node.children))
    _close(nodes)
    return Trie(nodes, paths, start)


def _separate(laid: list[list[int]]) -> Trie:
    """A segment for every sample, nothing shared."""
    nodes: list[Placed] = []
    paths: list[list[int]] = []
    start = 0
    for tokens in laid:
        paths.append([len(nodes)] if tokens else [])
        if tokens:
            nodes.append(Placed(tokens, start, -1, 0))
            start += len(tokens)
    _close(nodes)
    return Trie(nodes, paths, start)


def _close(nodes: list[Placed]) -> None:
    """Set `leave`: one past the last descendant, which in preorder is where the next non-descendant stands."""
    for i in reversed(range(len(nodes))):
        nodes[i].leave = max(i + 1, nodes[i].leave)
        if nodes[i].parent >= 0:
            parent = nodes[nodes[i].parent]
            parent.leave = max(parent.leave, nodes[i].leave)
