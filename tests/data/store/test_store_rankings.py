"""Judgements in the token store: all of them come back, and a store without any is hardly larger."""

from __future__ import annotations

import gc
import json
import math
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.config.sections import DataConfig, StepLabelsConfig
from espalier.data.dataset import open_data
from espalier.data.render.drafts import Rendered
from espalier.data.render.form import Form
from espalier.data.render.renderer import Renderer
from espalier.data.store import entry
from espalier.data.store.stats import StoreStats
from espalier.data.store.store import open_store
from espalier.errors import DataError, RowError
from espalier.forest.pack import totals
from espalier.types import Chat, Example, Ranking, Response, Sample, Steps
from judged_stores import CHATML, build, listed
from stores import FakeRenderer, FakeSource
from stores import build as build_fake
from toys import assistant, user

FIELDS = ("tokens", "mask", "weights", "label", "beats", "ties", "reads", "grades", "stop")


def told(sample: Sample) -> list[object]:
    """What the store holds of a sample, with nan made comparable."""
    return [json.dumps(getattr(sample, name)) for name in FIELDS]


# ------------------------------------------------------------------------------------------------------- what is kept


PLACES = st.lists(st.integers(0, 2**31 - 1), max_size=4)
NUMBERS = st.floats(width=64, allow_infinity=False)


@st.composite
def judged(draw: st.DrawFn) -> Sample:
    width = draw(st.integers(1, 3))
    grades = draw(st.lists(st.tuples(*[NUMBERS] * width), max_size=3))
    label = draw(st.none() | st.floats(allow_nan=False))
    made = Sample(label=label, beats=draw(PLACES), ties=draw(PLACES), reads=draw(PLACES), grades=grades)
    made.append([1, 2], trained=True)
    return made


@settings(max_examples=200, deadline=None)
@given(st.lists(judged(), min_size=1, max_size=4))
def test_judgements_come_back_exactly(samples: list[Sample]) -> None:
    data = entry.pack_judgements(samples)
    bare = [Sample(s.tokens, s.mask, s.weights) for s in samples]
    if data:
        entry.unpack_judgements(bare, data)
    assert [told(s) for s in bare] == [told(s) for s in samples]
    assert bool(data) == any(s.label is not None or s.beats or s.ties or s.reads or s.grades for s in samples)


def test_groups_come_back_as_they_were_rendered(tmp_path: Path) -> None:
    rows: list[Example] = [listed(2.0, 5.0, 2.0), listed(1.0, 0.0, texts="XY"), listed(None, 3.0, 4.0, texts="RST")]
    renderer = Renderer(CHATML, form=Form("ranking", "comparisons", True))
    store = build(tmp_path, rows, Form("ranking", "comparisons", True))
    for again in (store, build(tmp_path, rows, Form("ranking", "comparisons", True))):
        for i, row in enumerate(rows):
            assert [told(s) for s in again.group(i)] == [told(r.sample) for r in renderer.render(row)]
    assert [(s.label, s.beats, s.ties) for s in store.group(0)] == [(2.0, [], [2]), (5.0, [0, 2], []), (2.0, [], [])]


def test_groups_with_and_without_judgements_stand_in_one_store(tmp_path: Path) -> None:
    class Some(FakeRenderer):
        def render(self, example: Example, key: int) -> list[Rendered]:
            (one,) = FakeRenderer.render(self, example, key)
            if key % 2:
                one.sample.label, one.sample.reads, one.sample.grades = (
                    float(key),
                    [1, 2],
                    [(0.5, math.nan), (1.0, 2.0)],
                )
            return [one]

    store = build_fake(tmp_path, ["a|b", "c|d", "e|f", "g|h"], Some())
    for i in range(4):
        (s,) = store.group(i)
        assert (s.label, s.reads) == ((float(i), [1, 2]) if i % 2 else (None, []))
        assert json.dumps(s.grades) == ("[[0.5, NaN], [1.0, 2.0]]" if i % 2 else "[]")
    (store.folder / "judged.bin").write_bytes(b"")
    with pytest.raises(DataError, match="damaged"):
        store.group(1)


def test_grades_of_several_widths_are_refused() -> None:
    for grades in ([(1.0,), (1.0, 2.0)], [()]):
        with pytest.raises(ValueError, match="expected as many in each"):
            entry.pack_judgements([Sample([1], [True], [1.0], grades=grades)])  # type: ignore[arg-type]


def test_a_store_without_judgements_grows_by_eight_bytes_a_group(tmp_path: Path) -> None:
    store = build_fake(tmp_path, ["a|b", "c|d&e|f"])
    assert (store.folder / "judged.bin").stat().st_size == 0
    assert (store.folder / "group_judged.bin").stat().st_size == 16
    assert entry.SAMPLE.itemsize == 26


def test_entries_of_another_layout_are_built_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as m:
        m.setattr(entry, "VERSION", entry.VERSION - 1)
        old = build_fake(tmp_path, ["a|b"])
    renderer = FakeRenderer()
    new = build_fake(tmp_path, ["a|b"], renderer)
    assert renderer.calls == ["a|b"] and new.folder != old.folder
    with pytest.raises(entry.Damaged, match="version"):  # also where it carries the name of a new one
        entry.read_meta(old.folder)


# -------------------------------------------------------------------------------------------------------------- counts


def test_counts_of_a_ranking_store(tmp_path: Path) -> None:
    rows: list[Example] = [
        listed(3.0, 2.0, 2.0),  # three answers, two strict preferences, one tie
        listed(1.0, 0.0, None),  # one preference, one answer that nobody judged
        listed(1.0, 0.0, texts="AA"),
        listed(1.0, 1.0),
        Chat((user("Q"), assistant("A"))),
    ]
    s = build(tmp_path, rows, Form("ranking", "pairs", True)).stats
    assert (s.pairs, s.ties, s.reads, s.responses) == (3, 1, 5, {2: 1, 3: 1})
    assert (
        s.dropped == {"not judged": 1}
        and (s.dimensions, s.lowest, s.highest) == (("score",), 0.0, 3.0)
        and (s.good, s.bad) == (0, 0)
    )
    assert s.reasons == {"identical responses": 1, "no strict preference": 1, "wrong form": 1}
    assert StoreStats.from_json(json.loads(json.dumps(s.to_json()))) == s
    assert (s.whole, s.stopped, s.truncated) == (5, 5, 0)


def test_counts_agree_with_what_a_step_is_divided_by(tmp_path: Path) -> None:
    rows: list[Example] = [listed(3.0, 2.0, 2.0), listed(1.0, 0.0, 5.0, 7.0)]
    store = build(tmp_path, rows, Form("ranking", "pairs", True))
    sums = totals([store.group(i) for i in range(len(store))])
    assert sums["pairs", "main"] == store.stats.pairs == 2 + 6
    assert sums["reads", "main"] == store.stats.reads == 7


def test_labels_are_counted(tmp_path: Path) -> None:
    s = build(tmp_path, [listed(1.0, 0.0), listed(2.0, 9.0, 2.0)], Form("ranking", "labels")).stats
    assert (s.good, s.bad, s.pairs) == (2, 3, 0)
    keep = Form("steps", reads=True, labels=StepLabelsConfig(neutral="half", after_mistake="keep"))
    steps = Steps((user("Q"),), ("a", "b", "c", "d"), (1.0, 0.5, 0.0, None), True)
    s = build(tmp_path, [steps, steps], keep, content_key="v2").stats
    assert (s.good, s.bad, s.reads, s.responses) == (2, 2, 8, {})


def test_dimensions_are_the_same_in_all_rows(tmp_path: Path) -> None:
    grades = Form("ranking", "grades", True)
    first = listed(3.0, 4.0, dimensions=("helpful",))
    store = build(tmp_path, [first, listed(1.0, dimensions=("brief",)), first], grades)
    assert store.stats.dimensions == ("helpful",) and store.stats.kept == 2
    assert store.stats.reasons == {"scores in other dimensions": 1}
    with pytest.raises(RowError, match="got brief; expected helpful, as in the rows before"):
        build(tmp_path, [first, listed(1.0, dimensions=("brief",))], grades, content_key="v2", on_bad_row="stop")
    # Where scores only order the responses, each row may have its own.
    assert build(tmp_path, [first, listed(1.0, 2.0, dimensions=("brief",))], Form("ranking")).stats.kept == 2


def test_comparisons_keep_rows_whatever_they_are_graded_in(tmp_path: Path) -> None:
    """A row without grades, or with others than the first one's, has nan; the first row's are kept, also where a
    response lacks one."""
    helpful = listed(3.0, 4.0, dimensions=("helpful",))
    ranked = Ranking((user("R"),), tuple(Response(assistant(t), rank=i) for i, t in enumerate("XY")))
    rows: list[Example] = [ranked, helpful, listed(1.0, 2.0, dimensions=("brief",)), listed(5.0, 6.0, texts="ST")]
    store = build(tmp_path, rows, Form("ranking", "pairs", True))
    given = [[s.grades for s in store.group(i)] for i in range(4)]
    assert given[1] == [[(3.0,)], [(4.0,)]] and store.dimensions == ("helpful",)
    assert all(math.isnan(grade[0]) for i in (0, 2, 3) for (grade,) in given[i])
    assert store.stats.dropped == {"grade in another dimension": 4}
    assert (store.stats.lowest, store.stats.highest) == (3.0, 4.0)
    store.dimensions = ("a", "b")  # as where sources before it have these
    assert [[len(grade) for (grade,) in (s.grades for s in store.group(i))] for i in range(4)] == [[2, 2]] * 4
    sums = totals([store.group(i) for i in range(4)])
    assert sums["reads", "main"] == 0.0


def test_sources_of_other_dimensions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"a": listed(3.0, 4.0, dimensions=("helpful",)), "b": listed(1.0, dimensions=("brief",))}
    monkeypatch.setattr("espalier.data.dataset.read", lambda source, *_: iter([made[source.name]]))
    for name in made:
        (tmp_path / f"{name}.jsonl").write_text(name)
    renderer = Renderer(CHATML, form=Form("ranking", "grades", True))
    files = tuple(str(tmp_path / f"{name}.jsonl") for name in made)
    assert open_data(DataConfig(data=files[:1]), renderer, cache=tmp_path, seed=0).dimensions == ("helpful",)
    with pytest.raises(DataError, match="its scores are about brief; expected helpful"):
        open_data(DataConfig(data=files), renderer, cache=tmp_path, seed=0)
    made["b"] = listed(1.0, 2.0, dimensions=("brief",))
    (tmp_path / "b.jsonl").write_text("another b")
    compared = Renderer(CHATML, form=Form("ranking", "pairs", True))
    opened = open_data(DataConfig(data=files), compared, cache=tmp_path, seed=0)
    assert opened.dimensions == ("helpful",)
    assert [math.isnan(store.group(0)[0].grades[0][0]) for store in opened.main] == [False, True]


# -------------------------------------------------------------------------------------------------------------- memory


def test_memory_does_not_grow_with_rankings(tmp_path: Path) -> None:
    class Quick(FakeRenderer):
        def render(self, example: Example, key: int) -> list[Rendered]:
            made = [Rendered(Sample([1, 2, 3], [False, True, True], [0.0, 1.0, 1.0]), []) for _ in range(4)]
            for i, one in enumerate(made):
                one.sample.label, one.sample.beats, one.sample.reads = float(-i), list(range(i + 1, 4)), [2]
            return made

    def rows(n: int) -> Iterator[Example | RowError]:
        return (listed(1.0) for _ in range(n))

    def peak(n: int) -> int:
        gc.collect()
        tracemalloc.start()
        store = open_store(FakeSource(), lambda: rows(n), Quick(), cache=tmp_path, content_key=f"{n} rows")
        for i in range(0, n, 7):
            assert store.group(i)[0].beats == [1, 2, 3]
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(10)
    assert peak(3000) < 1.3 * peak(300)
