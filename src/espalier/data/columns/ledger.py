"""What was read from a source, as what, and what was not: counted row by row in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from espalier.data.columns.contents import Contents, contents, leaves, placeholders, together
from espalier.data.columns.names import groups_of
from espalier.data.columns.watched import WatchedRow
from espalier.errors import DataError

LONG = 80
"""Characters of a text that is too long to be left out without a word."""
EARLY = 1000
"""Rows after which texts that nobody read refuse a source; media and turns do at once."""
NAMES = 300
"""Most columns and keys that are counted by name; the others together are OTHERS."""
REWORDED = 10
"""Characters of a text that makes another one its template, if it stands in it."""
FRAMES = 8
"""Templates that are remembered of a column."""
_TASK = "Below is an instruction that describes a task"
_REQUEST = "Write a response that appropriately completes the request. ### Instruction: \0"
_PAIRED = f"{_TASK}, paired with an input that provides further context. {_REQUEST} ### Input: \0 ### Response:"
KNOWN_FRAMES = frozenset(
    f"{frame}{answer}" for frame in (f"{_TASK}. {_REQUEST} ### Response:", _PAIRED) for answer in ("", " \0")
)
"""The words of Alpaca, folded, with what was read as \\0: templates from the first row on."""
CONTEXTS = frozenset(("passage", "article", "document", "background", "story", "paragraph", "support"))
"""Columns that hold what a question is about."""
OTHERS = "(other keys)"
SHOWN = 12
"""Most columns that are listed on one line."""


@dataclass(slots=True)
class Unread:
    """A column or key that was not read. `rows` counts rows in which it is not empty, `chars` the characters of its
    longest texts there.

    `texts` counts rows whose text stands neither inside what was read nor under another name of a field that was read,
    nor is a template with what was read in it,
    `long` those of LONG characters and more; `media` and `turns` count rows that have some, and `first` is the line of
    the first one.
    """

    rows: int = 0
    chars: int = 0
    texts: int = 0
    long: int = 0
    media: int = 0
    turns: int = 0
    first: int = 0


@dataclass(slots=True)
class Ledger:
    """What the rows of a source gave to its reader.

    `format` is how rows were read, `guessed` whether their keys decided it. `read[name]` has the field that a column
    was read as and the number of rows; keys of objects inside a row have a dot in their names, whatever lists they
    stand in. `marks` counts rows with a placeholder for media in a text that was read, and the first one's line.
    `ignored` are the columns that the user leaves out; `mapped` counts the rows in which a mapped field was read.
    `notes` are what was done to rows beyond that, in words, with how often.
    `judges_text` is off if long texts are commonly left out, such as what a judge wrote. `kept` says that columns which
    are not read reach the run's rewards: then only media and what a question is about (CONTEXTS) must not be left out.
    """

    format: str = ""
    guessed: bool = False
    rows: int = 0
    read: dict[str, tuple[str, int]] = field(default_factory=dict)
    unread: dict[str, Unread] = field(default_factory=dict)
    marks: dict[str, tuple[int, int]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    mapped: dict[str, int] = field(default_factory=dict)
    judges_text: bool = True
    notes: dict[str, int] = field(default_factory=dict)
    kept: bool = False
    frames: dict[str, set[str]] = field(default_factory=dict, compare=False)
    """The words around what was read, by column; only while rows are read."""

    def add(self, line: int, row: WatchedRow) -> None:
        """Count a row that was read."""
        self.rows += 1
        one = _OneRow(self, line)
        one.walk(row, "")
        if self.format != "text":
            one.marks()
        one.settle()

    def take(self, taken: dict[str, str]) -> None:
        """Count columns and keys that were read of one row, with the fields they were read as."""
        others = 0
        for name, read_as in taken.items():
            if name not in self.read and len(self.read) >= NAMES:
                name, others = OTHERS, others + 1
            # The others together count once a row.
            if name != OTHERS or others <= 1:
                self.read[name] = (read_as, self.read[name][1] + 1 if name in self.read else 1)

    def leave(self, name: str) -> Unread:
        """The counts of a column or key that was not read."""
        unread = self.unread.get(name)
        if unread is None:
            unread = self.unread[name] = Unread()
        return unread

    # -------------------------------------------------------------------------------------------------------- refusal

    @property
    def dropped(self) -> dict[str, str]:
        """What must not be left out without a word, by name: media and turns in any row, text in over half of them."""
        reasons = {}
        for name, unread in self.unread.items():
            if self.kept and "answer" in groups_of(name):
                continue
            if unread.media:
                reasons[name] = f"media, first in row {unread.first}"
            elif self.kept and name.lower() not in CONTEXTS:
                continue
            elif unread.turns:
                reasons[name] = f"turns of a conversation, first in row {unread.first}"
            elif self.judges_text and 2 * unread.texts > self.rows and 2 * unread.long >= unread.texts:
                about = round(unread.chars / unread.rows)
                reasons[name] = f"text of about {about:,} characters in {unread.rows:,} of {self.rows:,} rows"
        for mark, (_, line) in self.marks.items():
            reasons[mark] = f"a placeholder for media, first in row {line}"
        return {name: reason for name, reason in reasons.items() if name not in self.ignored}

    @property
    def early(self) -> bool:
        """Whether the rows so far refuse the source, whatever follows."""
        if any(unread.media or unread.turns for unread in self.unread.values()) or self.marks:
            return bool(self.dropped)
        return self.rows == EARLY and bool(self.dropped)

    def refuse(self, path: str, proposal: str = "") -> None:
        """Raise DataError if the source has something that must not be left out without a word, or if a field that the
        user maps was read in no row."""
        for name, rows in self.mapped.items():
            if self.rows and not rows:
                fields = ", ".join(dict.fromkeys(read_as for read_as, _ in self.read.values()))
                raise DataError(
                    f"{path}: columns {name} is given, but format {self.format} reads it in none of {self.rows:,} "
                    f"rows; it read {fields}. Map one of these fields, name another format, or leave {name} out"
                )
        dropped = self.dropped
        if not dropped:
            return
        what = "; ".join(f"{name} ({reason})" for name, reason in list(dropped.items())[:SHOWN])
        flags = " ".join(f'"{name}"' if not name.replace("_", "").isalnum() else name for name in dropped)
        about = [name for name in dropped if self.kept and name.lower() in CONTEXTS]
        mapping = proposal or f"--columns {'context=' + about[0] if about else 'NAME=COLUMN'}"
        raise DataError(
            f"{path}: read as {self.format}, this leaves out {what}. Name what is to be read with {mapping}, or leave "
            f"it out knowingly with --ignore-columns {flags}"
        )

    # ---------------------------------------------------------------------------------------------------------- words

    def lines(self) -> Iterator[str]:
        """What was read and what was not, a line each; none if no row was read."""
        for note, count in self.notes.items():
            yield f"{note} ({count:,})"
        if not self.rows:
            return
        guessed = ", guessed from the first rows" if self.guessed else ""
        yield f"read as {self.format}{guessed}: {_clipped(_read_words(self.read))}"
        if self.unread:
            words = []
            for name, unread in sorted(self.unread.items(), key=lambda item: -item[1].rows):
                if self.kept and name in self.ignored:
                    continue
                size = f", about {round(unread.chars / unread.rows):,} characters" if unread.chars else ""
                words.append(f"{name} ({unread.rows:,} of {self.rows:,} rows{size})")
            yield f"{'kept for rewards' if self.kept else 'not read'}: {_clipped(words)}"
        if self.ignored:
            yield f"ignored: {', '.join(self.ignored)}"

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "frames"}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Ledger:
        ledger = cls(**data)
        ledger.read = {name: (read_as, rows) for name, (read_as, rows) in ledger.read.items()}
        ledger.unread = {name: Unread(**counts) for name, counts in data["unread"].items()}
        ledger.marks = {mark: (rows, line) for mark, (rows, line) in ledger.marks.items()}
        ledger.ignored = tuple(ledger.ignored)
        return ledger


def _read_words(read: dict[str, tuple[str, int]]) -> list[str]:
    """Columns with the fields they were read as; keys of objects in brackets behind their column."""
    columns: dict[str, list[str]] = {}
    for name, (read_as, _) in read.items():
        column, dot, key = name.partition(".")
        if dot and column in columns:
            columns[column].append(key if read_as == key.rpartition(".")[2] else f"{key} as {read_as}")
        else:
            columns[name] = []
    words = []
    for column, keys in columns.items():
        read_as = read[column][0]
        name = column if read_as == column.rpartition(".")[2] else f"{column} as {read_as}"
        words.append(f"{name} ({', '.join(keys)})" if keys else name)
    return words


def _clipped(words: list[str]) -> str:
    more = len(words) - SHOWN
    return ", ".join(words[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")


class _OneRow:
    """One row on its way into a ledger: names count once a row, however many objects of a list have them."""

    def __init__(self, ledger: Ledger, line: int) -> None:
        self.ledger, self.line = ledger, line
        self.taken: dict[str, str] = {}
        self.left: dict[str, list[Contents]] = {}
        self.rivals: set[str] = set()
        self.texts: list[str] = []
        # The texts in one, the same folded, and each of them folded, the longest first: made once they are needed.
        self._read: str | None = None
        self._folded_read: str | None = None
        self._parts: list[str] | None = None

    def walk(self, row: WatchedRow, place: str) -> None:
        """Sort the keys of an object into those that were read and those that were not."""
        for key, value in dict.items(row):
            if key in row.taken:
                name = place + key
                self.taken.setdefault(name, row.taken[key])
                if isinstance(value, str):
                    self.texts.append(value)
                else:
                    self.inside(value, name)
            elif value is not None:
                found = contents(key, value)
                if not found.empty:
                    name = place + key
                    self.left.setdefault(name, []).append(found)
                    if key in row.rivals:
                        self.rivals.add(name)

    def inside(self, value: Any, name: str) -> None:
        """A value that was read: its objects are walked if a reader looked into them, else it was read whole."""
        if isinstance(value, list):
            for inner in value:
                self.inside(inner, name)
        elif isinstance(value, WatchedRow) and entered(value):
            self.walk(value, _prefix(name))
        else:
            self.texts.extend(leaves(value))

    def marks(self) -> None:
        """Count placeholders for media in what was read."""
        found = {mark for text in self.texts if "<" in text or "[" in text for mark in placeholders(text)}
        for mark in sorted(found):
            rows, line = self.ledger.marks.get(mark, (0, self.line))
            if mark in self.ledger.marks or len(self.ledger.marks) < NAMES:
                self.ledger.marks[mark] = (rows + 1, line)

    def settle(self) -> None:
        """Add the row to the ledger."""
        ledger = self.ledger
        ledger.take(self.taken)
        left = self.left
        if not left.keys().isdisjoint(self.taken):
            left = {name: found for name, found in left.items() if name not in self.taken}
        if len(ledger.unread) + len(left) > NAMES:
            left = self._bounded(left)
        for name, several in left.items():
            unread = ledger.leave(name)
            unread.rows += 1
            found = several[0] if len(several) == 1 else together(several)
            turns = False
            if found.length or found.turns:
                same = name in self.rivals or all(map(self._is_inside, found.texts))
                long = found.length >= LONG
                if long and not same:
                    same = all(self._rewords(name, text) for text in found.texts)
                unread.chars += found.length
                unread.texts += bool(found.length and not same)
                unread.long += bool(long and not same)
                turns = found.turns and not same
            unread.media += found.media
            unread.turns += turns
            if (found.media or turns) and not unread.first:
                unread.first = self.line

    def _bounded(self, left: dict[str, list[Contents]]) -> dict[str, list[Contents]]:
        """What was left under names that are still counted; the others together are one, which counts once a row."""
        known, free = self.ledger.unread, NAMES - len(self.ledger.unread)
        bounded: dict[str, list[Contents]] = {}
        for name, several in left.items():
            if name not in known:
                free -= 1
            if name in known or free >= 0:
                bounded[name] = several
            elif name not in self.rivals:
                bounded.setdefault(OTHERS, []).extend(several)
        return bounded

    def _is_inside(self, text: str) -> bool:
        """Whether a text stands inside what was read, whatever its line breaks."""
        if self._read is None:
            self._read = " ".join(self.texts)
        # Mostly this can be told without folding all that was read.
        if text.strip() in self._read:
            return True
        words = text.split()
        if len(words) == 1 or max(words, key=len) not in self._read:
            return False
        if self._folded_read is None:
            self._folded_read = _folded(self.texts)
        return " ".join(words) in self._folded_read

    def _rewords(self, name: str, text: str) -> bool:
        """Whether a text is what was read, in words that stood around it in earlier rows, too: a filled-in template."""
        rest, stands = _one(text), False
        if self._parts is None:
            self._parts = sorted(map(_one, self.texts), key=len, reverse=True)
        for part in self._parts:
            if part and part in rest:
                stands = stands or len(part) >= REWORDED
                rest = rest.replace(part, "\0", 1)
        frames = self.ledger.frames.setdefault(name, set(KNOWN_FRAMES))
        if not stands or rest in frames:
            return stands
        if len(frames) < FRAMES + len(KNOWN_FRAMES):
            frames.add(rest)
        return False


def _prefix(name: str) -> str:
    """What stands before the keys of an object under `name`: answers to answers have one name, however deep they lie.

    >>> _prefix("tree"), _prefix("tree.replies"), _prefix("tree.replies.replies")
    ('tree.', 'tree.replies.', 'tree.replies.')
    """
    stem, _, last = name.rpartition(".")
    again = "." in name and stem.rpartition(".")[2] == last
    return f"{stem if again else name}."


def entered(row: WatchedRow) -> bool:
    """Whether a reader looked up a key of an object, or of one inside it."""
    return bool(row.taken) or any(_entered(inner) for inner in dict.values(row))


def _entered(value: Any) -> bool:
    if isinstance(value, list):
        return any(_entered(inner) for inner in value)
    return isinstance(value, WatchedRow) and entered(value)


def _one(text: str) -> str:
    return _folded([text])


def _folded(texts: Iterable[str]) -> str:
    """Texts in one, with single spaces: what is compared does not depend on line breaks."""
    return " ".join(" ".join(texts).split())
