"""Counts of a store: by hand, stop tokens, BOS, duplicates."""

from __future__ import annotations

from pathlib import Path

from espalier.data.render.drafts import Rendered
from espalier.data.store.stats import StoreStats
from espalier.errors import RowError
from espalier.types import Sample
from stores import BOS, STOP, FakeRenderer, build


def test_stats_by_hand(tmp_path: Path) -> None:
    texts: list[str | RowError] = [
        "a|b",
        "bad 1",
        "abcdefgh|x",
        RowError("broken JSON").at("in/toy.jsonl:4"),
        "a|b",
        "",
    ]
    store = build(tmp_path, texts, FakeRenderer(limit=6), on_bad_row="skip")
    s = store.stats
    assert (s.rows, s.kept, s.rejected) == (6, 3, 3)
    assert s.reasons == {"bad text": 1, "broken JSON": 1, "no tokens": 1}
    assert (s.samples, s.tokens, s.trained, s.longest) == (3, 4 + 6 + 4, 4, 6)
    # The second kept row, cut to BOS a b c d e, has nothing left to train and does not count for stop tokens.
    assert (s.truncated, s.untrained, s.whole, s.stopped) == (1, 1, 2, 2)
    assert s.by_role == {"user": 1 + 5 + 1, "assistant": 4, "other": 3} and s.trained_by_role == {"assistant": 4}
    assert (s.bos_0, s.bos_1, s.bos_more) == (0, 3, 0)
    assert s.histogram == {4: 2, 8: 1}
    assert s.duplicates == 1
    assert build(tmp_path, texts, FakeRenderer(limit=6), on_bad_row="skip").stats == s


def test_missing_stop_tokens_and_double_bos_show(tmp_path: Path) -> None:
    store = build(tmp_path, ["a|b", f"{chr(BOS)}a|b"], FakeRenderer(stop_ids=frozenset({99})))
    assert (store.stats.whole, store.stats.stopped) == (2, 0)
    assert (store.stats.bos_0, store.stats.bos_1, store.stats.bos_more) == (0, 1, 1)
    # Where BOS is a stop token too, those that end turns are no second BOS.
    shared = FakeRenderer("fake 2", stop_ids=frozenset({BOS, STOP}))
    stats = build(tmp_path, [f"a|b{chr(BOS)}", f"{chr(BOS)}a|b"], shared).stats
    assert (stats.bos_0, stats.bos_1, stats.bos_more) == (0, 1, 1)


def test_the_stop_token_is_looked_for_at_the_end_of_the_trained_part() -> None:
    for tokens, mask, stopped in (([5, STOP, 9], [0, 1, 0], 1), ([5, 6, STOP], [1, 1, 0], 0)):
        stats = StoreStats()
        sample = Sample(tokens, [bool(m) for m in mask], [float(m) for m in mask])
        stats.keep([Rendered(sample, [])], {STOP}, None)
        assert (stats.whole, stats.stopped) == (1, stopped)
        assert (stats.bos_0, stats.bos_1, stats.bos_more) == (0, 0, 0)


def test_duplicates_compare_tokens_sample_by_sample(tmp_path: Path) -> None:
    one_sample, two_samples = f"a|b{chr(STOP)}{chr(BOS)}c", "a|b&c"
    assert build(tmp_path, [one_sample, two_samples], content_key="v2").stats.duplicates == 0
    assert build(tmp_path, ["a|b&c|d", "a|b", "c|d", "a|b&c|d", "a|b", "a|b"]).stats.duplicates == 3
