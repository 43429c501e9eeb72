"""A plain text that is longer than a sample becomes several, and none of it is lost."""

import pytest

from espalier.data.render.renderer import Renderer
from espalier.data.store.stats import StoreStats
from espalier.types import Text
from toys import letters


@pytest.mark.parametrize("bos", [False, True])
def test_windows_hold_the_text_once_and_stop_once(bos: bool) -> None:
    tokenizer = letters(template="plain", bos=bos)
    r = Renderer(tokenizer, max_length=4)
    group = r.render(Text("abcdefghij"))
    s = "<s>" if bos else ""
    expected = [s + "abc", s + "def", s + "ghi", s + "j</s>"] if bos else ["abcd", "defg", "ghij", "j</s>"]
    assert [tokenizer.decode(g.sample.tokens) for g in group] == expected
    assert [g.sample.stop for g in group] == ["length"] * 3 + ["stop"]
    scored = [t for g in group for t, m in zip(g.sample.tokens[1:], g.sample.mask[1:], strict=True) if m]
    assert tokenizer.decode(scored) == ("abcdefghij</s>" if bos else "bcdefghij</s>")
    assert sum(sum(g.sample.mask) for g in group) == (4 if bos else 0) + 11
    stats = StoreStats()
    stats.keep(group, r.stop_ids, r.bos_id)
    assert (stats.truncated, stats.whole, stats.stopped) == (0, 1, 1)


def test_a_text_that_fits_exactly_is_one_window() -> None:
    r = Renderer(letters(template="plain"), max_length=4)
    assert len(r.render(Text("abc"))) == 1 and len(r.render(Text("abcd"))) == 2
