"""The formats whose rows hold one conversation, and how their rows are told apart by keys."""

from __future__ import annotations

from espalier.data.formats import alpaca, messages, prompt, sharegpt, text, transcript
from espalier.data.formats.common import Fields, missing
from espalier.data.formats.format import Format
from espalier.errors import RowError
from espalier.types import Chat, Origin

# Text comes last: many conversations have a column of that name beside them.
CHATS: tuple[Format, ...] = (
    messages.FORMAT,
    sharegpt.FORMAT,
    alpaca.FORMAT,
    prompt.FORMAT,
    transcript.FORMAT,
    text.FORMAT,
)
"""The formats of one conversation or text, in the order in which a row is compared with them."""
EXPECTED = (
    "instruction and output; conversations or messages; prompt (question, query) and completion (response, answer, "
    "output)"
)


def sniff_chat(row: Fields) -> Format | None:
    """The first of `CHATS` that a row looks like, or None."""
    for form in CHATS:
        if form.looks is not None and form.looks(row, "chat"):
            return form
    return None


def is_chat(row: Fields) -> bool:
    """Whether a row holds a conversation, beside whatever else it has. A text is not one."""
    return sniff_chat(row) not in (None, text.FORMAT)


def read_chat(row: Fields, origin: Origin) -> Chat:
    """The one conversation of a row, in whichever format it has. Raises RowError, also if the row holds several."""
    form = sniff_chat(row)
    if form is None or form is text.FORMAT:
        raise missing("", row, EXPECTED)
    example = form.read(row, origin)
    chats: list[Chat] = example if isinstance(example, list) else [example]
    if len(chats) != 1:
        expected = "one answer in a row that judges it"
        raise RowError("several answers", field="instances", got=f"{len(chats)} answers", expected=expected)
    return chats[0]
