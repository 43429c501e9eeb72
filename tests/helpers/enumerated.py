"""Policies over a handful of sequences, whose every outcome is enumerated: expected gradients of the library's losses,
and the policies at which they vanish. Float64, no sampling.

A tree has V tokens at each of D places, so V^D sequences; a bandit is a tree of depth 1. Its policy is a table of
logits, one row for each prefix, the last token's at 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from batches import batch_of
from espalier.algorithms.onpolicy import OnPolicy
from espalier.types import Batch, Outputs, Sample, Term
from samples import sample

WIDE = torch.float64
Path = tuple[int, ...]


@dataclass
class Tree:
    """`rewards` of every sequence, and the reference's probabilities of the next token after every prefix."""

    rewards: dict[Path, float]
    ref: dict[Path, list[float]]
    sequences: list[Path] = field(init=False)
    prefixes: list[Path] = field(init=False)

    def __post_init__(self) -> None:
        self.sequences, self.prefixes = sorted(self.rewards), sorted(self.ref)
        self.depth, self.tokens = len(self.sequences[0]), len(self.ref[()])
        self.R_N = torch.tensor([self.rewards[y] for y in self.sequences], dtype=WIDE)
        self.rows_ND = torch.tensor([[self.prefixes.index(y[:d]) for d in range(self.depth)] for y in self.sequences])
        self.tokens_ND = torch.tensor(self.sequences)
        self.ref_ND = torch.tensor([self.ref[x] for x in self.prefixes], dtype=WIDE).log()[self.rows_ND, self.tokens_ND]

    def start(self) -> Tensor:
        """The table of the reference, [prefixes, V - 1]."""
        logits = torch.tensor([self.ref[x] for x in self.prefixes], dtype=WIDE).log()
        return logits[:, :-1] - logits[:, -1:]

    def logprobs(self, theta: Tensor) -> Tensor:
        """log pi of every token of every sequence, [N, D]."""
        logits = torch.cat([theta, torch.zeros_like(theta[:, :1])], 1)
        return logits.log_softmax(1)[self.rows_ND, self.tokens_ND]

    def policy(self, theta: Tensor) -> Tensor:
        """The probability of every sequence, [N]."""
        return self.logprobs(theta).detach().sum(1).exp()

    def best(self, beta: float) -> Tensor:
        """pi* ~ ref exp(R / beta), [N]."""
        return (self.ref_ND.sum(1) + self.R_N / beta).softmax(0)

    def by_tokens(self, weigh: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The policy whose choice after each prefix is `weigh(ref [V], Q [V])`, Q being the expected reward after each
        token under the choices that follow, [N]: what a loss reaches whose KL sees one token at a time."""
        values: dict[Path, float] = dict(self.rewards)
        choice: dict[Path, Tensor] = {}
        for prefix in sorted(self.prefixes, key=len, reverse=True):
            Q = torch.tensor([values[(*prefix, token)] for token in range(self.tokens)], dtype=WIDE)
            choice[prefix] = weigh(torch.tensor(self.ref[prefix], dtype=WIDE), Q)
            values[prefix] = float(choice[prefix] @ Q)
        rows = [[choice[y[:d]][y[d]] for d in range(self.depth)] for y in self.sequences]
        return torch.tensor(rows, dtype=WIDE).prod(1)


def softly(beta: float) -> Callable[[Tensor, Tensor], Tensor]:
    """ref exp(Q / beta), normalised."""
    return lambda ref, Q: (ref.log() + Q / beta).softmax(0)


def hyperbola(beta: float) -> Callable[[Tensor, Tensor], Tensor]:
    """beta ref / (c - Q), c such that it sums to 1 (by bisection)."""

    def weigh(ref: Tensor, Q: Tensor) -> Tensor:
        low, high = float(Q.max()), float(Q.max()) + beta
        for _ in range(200):
            c = (low + high) / 2
            low, high = (c, high) if float((beta * ref / (c - Q)).sum()) > 1 else (low, c)
        return beta * ref / (high - Q)

    return weigh


def gap(p: Tensor, q: Tensor) -> float:
    """Total variation."""
    return float((p - q).abs().sum() / 2)


@dataclass
class Expectation:
    """The expected loss of one update on the policy's own draws, and its gradient.

    group: answers to a prompt, all combinations of which are enumerated, and credited by the algorithm, each as a
    rollout; 0 takes exact advantages, the score less its expectation. state: what `credit` is given.
    """

    tree: Tree
    algorithm: OnPolicy
    group: int = 0
    state: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.tree.sequences)
        self.draws = list(itertools.product(range(count), repeat=self.group or 1))
        self.which = torch.tensor(self.draws)  # [groups, size]
        self.samples: list[list[Sample]] = [
            [sample([9], self.tree.sequences[n], group=number, reward=float(self.tree.R_N[n])) for n in draw]
            for number, draw in enumerate(self.draws)
        ]

    def gradient(self, theta: Tensor) -> Tensor:
        leaf = theta.clone().requires_grad_()
        logprobs_ND = self.tree.logprobs(leaf)
        p_N = logprobs_ND.detach().sum(1).exp()
        p_groups = p_N[self.which].prod(1)
        rows = self.which.flatten()
        batch = self._batch(logprobs_ND.detach(), p_N)
        terms = self.algorithm.loss(Outputs(logprobs_ND[rows].flatten()), batch)
        loss = sum((self._share(term, p_groups) for term in terms.values()), start=torch.zeros((), dtype=WIDE))
        (slope,) = torch.autograd.grad(loss, leaf)
        return slope

    def _share(self, term: Term, p_groups: Tensor) -> Tensor:
        """What `normalise` would make of a term, group by group, each with its probability."""
        size = self.which.shape[1]
        x = term.x.view(len(self.draws), -1).sum(1) @ p_groups
        return term.coef * x / (size if term.over == "sequences" else size * self.tree.depth)

    def _batch(self, logprobs_ND: Tensor, p_N: Tensor) -> Batch:
        rows = self.which.flatten()
        if self.algorithm.kl_place == "reward":
            for s, n in zip((s for group in self.samples for s in group), rows.tolist(), strict=True):
                s.streams["old_logprobs"] = [0.0, *logprobs_ND[n].tolist()]
                s.streams["ref_logprobs"] = [0.0, *self.tree.ref_ND[n].tolist()]
        if self.group:
            for group in self.samples:  # each is a rollout of its own
                self.algorithm.credit([group], dict(self.state))
            advantages = [x for group in self.samples for s in group for x in s.streams["advantages"][1:]]
            A = torch.tensor(advantages, dtype=WIDE)
        else:
            scores_N = torch.tensor(self.algorithm.scores(self.samples), dtype=WIDE)[:, 0]
            A = (scores_N - p_N @ scores_N).repeat_interleave(self.tree.depth)
        streams = {"advantages": A, "ref_logprobs": self.tree.ref_ND[rows].flatten()}
        return batch_of([self.tree.depth] * len(rows), streams=streams, state={"max_tokens": float(self.tree.depth)})

    def fixed_point(self, *, steps: int = 60, rate: float = 2.0) -> Tensor:
        """The table that gradient steps from the reference lead to, by Newton's method at last.

        Raises ArithmeticError if the gradient there is above 1e-8.
        """
        theta = self.tree.start()
        for _ in range(steps):
            theta = theta - rate * self.gradient(theta)
        for _ in range(12):
            slope = self.gradient(theta)
            if slope.abs().max() < 1e-12:
                break
            theta = theta - torch.linalg.solve(self._jacobian(theta), slope.flatten()).view_as(theta)
        worst = float(self.gradient(theta).abs().max())
        if not worst <= 1e-8:
            raise ArithmeticError(f"the gradient is {worst:.1e} where it should vanish")
        return theta

    def _jacobian(self, theta: Tensor, size: float = 1e-5) -> Tensor:
        columns = []
        for place in range(theta.numel()):
            step = torch.zeros_like(theta).flatten()
            step[place] = size
            step = step.view_as(theta)
            columns.append((self.gradient(theta + step) - self.gradient(theta - step)).flatten() / (2 * size))
        return torch.stack(columns, 1)


def table_of(tree: Tree, p_N: Tensor) -> Tensor:
    """The table of logits whose policy is `p_N`, [prefixes, V - 1]."""
    rows = []
    for prefix in tree.prefixes:
        mass = torch.zeros(tree.tokens, dtype=WIDE)
        for y, p in zip(tree.sequences, p_N.tolist(), strict=True):
            if y[: len(prefix)] == prefix:
                mass[y[len(prefix)]] += p
        logits = mass.log()
        rows.append(logits[:-1] - logits[-1])
    return torch.stack(rows)


def tree(rewards: Sequence[float], first: dict[Path, float]) -> Tree:
    """A tree of two tokens a place: the rewards of its sequences in order, the reference's probability of token 0 after
    each prefix."""
    depth = (len(rewards) - 1).bit_length()
    paths = itertools.product(range(2), repeat=depth)
    return Tree(dict(zip(paths, rewards, strict=True)), {x: [p, 1 - p] for x, p in first.items()})


def bandit(rewards: Sequence[float], ref: Sequence[float]) -> Tree:
    return Tree({(a,): r for a, r in enumerate(rewards)}, {(): list(ref)})


TREES = {
    "bandit": bandit([1.0, 0.3, 0.0], [0.2, 0.5, 0.3]),
    "two tokens": tree([1.0, 0.0, 0.6, 0.5], {(): 0.6, (0,): 0.5, (1,): 0.3}),
    "three tokens": tree(
        [0.2, 0.1, 0.5, 0.3, 0.7, 0.1, 0.9, 0.1],
        {(): 0.2, (0,): 0.9, (1,): 0.7, (0, 0): 0.9, (0, 1): 0.5, (1, 0): 0.1, (1, 1): 0.3},
    ),
}
