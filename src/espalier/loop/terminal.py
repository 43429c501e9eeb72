"""What reaches the terminal. Names, paths, rows and answers come from others, and may hold what a terminal obeys."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

# C0 but line break and tab, DEL, C1; what turns the direction of writing around; halves of characters, which no
# encoding can write.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """The text with control characters spelt out.

    >>> visible("a\\x1b[31mb\\u202e")
    'a\\\\x1b[31mb\\\\u202e'
    """
    return _OBEYED.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class Terminal(Console):
    """A console whose texts, in lines, tables and bars alike, hold no control character but those that it writes."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or not _OBEYED.search(segment.text):
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)
