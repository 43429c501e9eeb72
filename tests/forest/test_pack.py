"""Samples in, forest out: the worked example by hand, then what must hold for any groups."""

import math

import pytest
import torch
from hypothesis import given, settings

from espalier.forest import trie
from espalier.forest.pack import pack, totals
from espalier.types import Sample
from samples import groups, path_tokens, sample

P, A, B = 1, 2, 3


def example() -> list[list[Sample]]:
    return [[sample([P] * 3, [A] * 2), sample([P] * 3, [B] * 3)]]


def test_worked_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trie, "MIN_SHARED", 1)
    batch = pack(example(), totals(example()), count_uses=True)
    assert batch.inputs_N.tolist() == [P, P, P, A, B, B]
    assert batch.positions_N.tolist() == [0, 1, 2, 3, 3, 4]
    assert batch.sources_U.tolist() == [2, 3, 2, 4, 5]
    assert batch.targets_U.tolist() == [A, A, B, B, B]
    assert batch.score.tolist() == [0, 1, 2, 3, 4]
    assert batch.rows.tolist() == [0, 0, 1, 1, 1]
    assert batch.weights.tolist() == [1.0] * 5
    assert [(s.start, s.length, s.parent, s.depth, s.leave) for s in batch.segments] == [
        (0, 3, -1, 0, 3),
        (3, 1, 0, 3, 2),
        (4, 2, 0, 3, 3),
    ]
    assert batch.uses_N is not None
    assert batch.uses_N.tolist() == [2, 2, 2, 1, 1, 1]
    assert batch.totals == {
        ("tokens", "main"): 5.0,
        ("sequences", "main"): 2.0,
        ("groups", "main"): 1.0,
        ("reads", "main"): 0.0,
        ("pairs", "main"): 0.0,
    }


def test_second_group_stands_behind_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trie, "MIN_SHARED", 1)
    both = [*example(), [sample([7], [8, 9])], *example()]
    batch = pack(both, totals(both))
    assert batch.inputs_N.tolist() == [P, P, P, A, B, B, 7, 8, P, P, P, A, B, B]
    assert batch.sources_U.tolist() == [2, 3, 2, 4, 5, 6, 7, 10, 11, 10, 12, 13]
    assert batch.targets_U.tolist() == [A, A, B, B, B, 8, 9, A, A, B, B, B]
    assert batch.rows.tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4, 4]
    assert [(s.start, s.parent, s.leave) for s in batch.segments[3:]] == [
        (6, -1, 4),
        (8, -1, 7),
        (11, 4, 6),
        (12, 4, 7),
    ]


def test_equal_samples_share_scores_unless_temperatures_differ() -> None:
    pair = [sample([P] * 20, [A, B], weight=2.0), sample([P] * 20, [A, B], temperature=0.5)]
    batch = pack([pair], totals([pair]))
    assert batch.sources_U.tolist() == [19, 20, 19, 20]
    assert batch.temperatures_U.tolist() == [1.0, 1.0, 0.5, 0.5]
    same = [sample([P] * 20, [A, B], weight=2.0), sample([P] * 20, [A, B, A])]
    batch = pack([same], totals([same]))
    assert (batch.sources_U.tolist(), batch.targets_U.tolist()) == ([19, 20, 21], [A, B, A])
    assert batch.score.tolist() == [0, 1, 0, 1, 2]
    assert batch.weights.tolist() == [2.0, 2.0, 1.0, 1.0, 1.0]


def test_streams_follow_their_targets() -> None:
    s = Sample()
    s.append([5, 6], trained=False)
    s.append([7], trained=True, weight=0.5, logprobs=[-0.7])
    s.append([8], trained=False)
    s.append([9], trained=True, logprobs=[-0.9])
    s.streams["advantages"] = [0.0, 1.0, 2.0, 3.0, 4.0]
    batch = pack([[s]], totals([[s]]))
    assert batch.targets_U.tolist() == [7, 9]
    assert batch.sources_U.tolist() == [1, 3]
    assert batch.streams["logprobs"].tolist() == pytest.approx([-0.7, -0.9])
    assert batch.streams["advantages"].tolist() == [2.0, 4.0]
    assert batch.weights.tolist() == [0.5, 1.0]


def test_totals_by_hand() -> None:
    first = Sample([1, 2, 3], [True, True, True], [9.0, 0.5, 0.25], reads=[2])  # nothing precedes the first token
    second = sample([1], [2, 2], part="replay")
    third = sample([1], [2, 2, 2])
    third.mask[2] = False  # its weight stays behind and must not count
    assert totals([[first, second], [third], [sample([1], [2], part="replay")]]) == {
        ("tokens", "main"): 0.75 + 2.0,
        ("sequences", "main"): 2.0,
        ("groups", "main"): 2.0,
        ("reads", "main"): 1.0,
        ("pairs", "main"): 0.0,
        ("tokens", "replay"): 3.0,
        ("sequences", "replay"): 2.0,
        ("groups", "replay"): 2.0,
        ("reads", "replay"): 0.0,
        ("pairs", "replay"): 0.0,
    }


def test_pairs_reads_and_the_part_chosen() -> None:
    """A > B > C, B = D: four strict pairs (A beats all, B and D beat C... D's are left out), one tie, A is chosen."""
    a, b, c, d = (sample([P] * 20, [x] * n) for x, n in ((A, 2), (B, 3), (A, 1), (B, 1)))
    a.beats, b.beats, b.ties, a.label = [1, 2, 3], [2], [3], 2.5
    alone = sample([P], [A])
    for s in (a, b, c, d, alone):
        s.reads, s.grades = [len(s) - 1], [(1.0, math.nan)]
    alone.grades = [(math.nan, math.nan)]
    groups = [[alone], [a, b, c, d]]
    sums = totals(groups)
    assert (sums["pairs", "main"], sums["groups", "main"], sums["reads", "main"]) == (4, 2, 4)
    assert (sums["tokens", "chosen"], sums["sequences", "chosen"], sums["groups", "chosen"]) == (2, 1, 1)
    batch = pack(groups, sums)
    assert batch.wins_P2.tolist() == [[1, 2], [1, 3], [1, 4], [2, 3]] and batch.ties_Q2.tolist() == [[2, 4]]
    assert batch.group_S.tolist() == [0, 1, 1, 1, 1] and batch.lengths_S.tolist() == [1, 2, 3, 1, 1]
    assert batch.chosen_S.tolist() == [False, True, False, False, False]
    assert batch.part("chosen").tolist() == [False, True, True, *[False] * 5]
    assert batch.labels_S[1].item() == 2.5 and batch.labels_S[[0, 2, 3, 4]].isnan().all()
    ends = [path_tokens(batch, position) for position in batch.reads_R.tolist()]
    assert ends == [s.tokens for s in (alone, a, b, c, d)] and batch.read_rows_R.tolist() == [0, 1, 2, 3, 4]
    assert batch.grades_RK.shape == (5, 2) and batch.grades_RK[1:, 0].tolist() == [1.0] * 4
    scalar = pack(groups, sums, says="reads")
    assert scalar.score.numel() == scalar.rows.numel() == scalar.sources_U.numel() == 0
    assert scalar.reads_R.tolist() == batch.reads_R.tolist() and torch.equal(scalar.lengths_S, batch.lengths_S)


def test_comparisons_and_grades_that_do_not_fit_are_refused() -> None:
    a, b = sample([1], [2]), sample([1], [3])
    a.beats = [1]
    with pytest.raises(ValueError, match="compared with 1; expected another of the 1"):
        pack([[a]], {})
    a.beats, a.reads, a.grades = [], [1], [(1.0,)]
    b.reads, b.grades = [1], [(1.0, 2.0)]
    with pytest.raises(ValueError, match="dimensions"):
        pack([[a, b]], {})
    b.grades = []
    for pair in ([a, b], [b, a]):
        with pytest.raises(ValueError, match="grades"):
            pack([pair], {})


def test_a_stream_is_everywhere_in_a_part_or_nowhere() -> None:
    have, lack, other = sample([1], [2], group=3), sample([1], [3], group=4), sample([1], [2], group=5, part="replay")
    have.streams["advantages"] = [0.0, 1.0]
    batch = pack([[have], [other]], totals([[have], [other]]))
    assert batch.streams["advantages"].tolist() == [1.0, 0.0]
    for call in (lambda g: pack(g, {}), totals):  # one forward, and the whole step
        with pytest.raises(ValueError, match=r"group 4.*'main'.*advantages"):
            call([[have], [lack]])
    have.streams["advantages"] = [0.0]
    with pytest.raises(ValueError, match=r"group 3.*1 entries; expected 2"):
        pack([[have]], {})


def test_parts_are_told_apart() -> None:
    mixed = [[sample([1], [2, 2], part="replay"), sample([1], [3])]]
    batch = pack(mixed, totals(mixed))
    assert batch.part("replay").tolist() == [True, True, False]
    assert batch.part("main").tolist() == [False, False, True]


def test_a_batch_without_a_scored_token_is_empty() -> None:
    batch = pack([[Sample([1], [True], [1.0])]], {}, count_uses=True)
    assert [batch.inputs_N.numel(), batch.score.numel(), batch.segments] == [0, 0, []]


@settings(max_examples=150, deadline=None)
@given(groups())
def test_properties(groups_: list[list[Sample]]) -> None:
    samples = [s for g in groups_ for s in g]
    for share in (True, False):
        batch = pack(groups_, totals(groups_), share=share, count_uses=True)
        assert batch.inputs_N.numel() <= sum(map(len, samples))
        uses = [(r, t) for r, s in enumerate(samples) for t in range(1, len(s.tokens)) if s.mask[t]]
        assert batch.rows.tolist() == [r for r, _ in uses]  # every trained token once per use, the first never
        assert batch.weights.tolist() == [samples[r].weights[t] for r, t in uses]
        group_of = [g for g, group in enumerate(groups_) for _ in group]
        meanings: dict[int, set[tuple[object, ...]]] = {}
        for (r, t), u in zip(uses, batch.score.tolist(), strict=True):
            s = samples[r]
            assert path_tokens(batch, int(batch.sources_U[u])) == s.tokens[:t]
            assert int(batch.targets_U[u]) == s.tokens[t]
            assert float(batch.temperatures_U[u]) == s.temperature
            meanings.setdefault(u, set()).add((group_of[r], tuple(s.tokens[:t]), s.tokens[t], s.temperature))
        assert all(len(m) == 1 for m in meanings.values())
        assert sorted(meanings) == list(range(len(batch.sources_U)))  # nothing is scored that nobody uses
        triples = zip(batch.sources_U.tolist(), batch.targets_U.tolist(), batch.temperatures_U.tolist(), strict=True)
        assert len(set(triples)) == len(batch.sources_U)
        depth = [len(path_tokens(batch, n)) - 1 for n in range(batch.inputs_N.numel())]
        assert batch.positions_N.tolist() == depth
        assert batch.uses_N is not None
        assert batch.uses_N.sum() == sum(trie.laid_length(s) for s in samples)
        assert torch.all(batch.uses_N > 0)
