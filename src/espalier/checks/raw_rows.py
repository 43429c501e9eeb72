"""The check of samples against the JSON that their rows were written in, for columns whose meaning their names say.

The readers have no part in it: lines are parsed here once more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espalier.checks.table import Outcome, failed, passed, skipped
from espalier.types import Chat, Ranking, Sample, Steps, TrainOn

if TYPE_CHECKING:
    from espalier.checks.evidence import Evidence, Row

LINES = 256
"""Lines of a file that are parsed."""
_THOUGHT = re.compile("</?think>")
Decode = Callable[[list[int]], str]
Claim = tuple[str, bool]
"""What a row says of its samples, and whether it holds."""


def check_raw_rows(evidence: Evidence) -> Outcome:
    """The first rows of every JSONL file whose columns are read as they are named."""
    session = evidence.session
    tokenizer = session.model.loaded.tokenizer
    plain = not session.config.preference.flip and session.config.labels.supervision == "process"
    train_on = session.renderer.train_on
    by_name: dict[str, list[Row]] = {}
    for row in evidence.rows:
        by_name.setdefault(row.example.origin.source, []).append(row)
    found: list[Claim] = []
    names = [source.name for source in session.opened.sources]
    for source in session.opened.sources:
        path = Path(source.path)
        if names.count(source.name) > 1 or path.suffix != ".jsonl" or not path.is_file() or source.columns.text:
            continue
        lines = lines_of(path)
        for row in by_name.get(source.name, []):
            raw = lines.get(row.example.origin.line)
            if raw is not None:
                found += claims(raw, row, lambda ids: str(tokenizer.decode(ids)), judged=plain, train_on=train_on)
    return raw_rows(found)


def raw_rows(checked: Iterable[Claim]) -> Outcome:
    """Whether all claims of rows hold."""
    checked = list(checked)
    limit = "as their columns say"
    if not checked:
        return skipped("no JSONL row whose columns say by name what they are", limit)
    wrong = [about for about, holds in checked if not holds]
    if wrong:
        way_out = f"First: {wrong[0]}. The reader took a column for another: name them with --columns, and report it."
        return failed(f"{len(wrong)} of {len(checked)} claims do not hold", limit, way_out)
    return passed(f"{len(checked)} claims of raw rows hold", limit)


def lines_of(path: Path) -> dict[int, dict[str, Any]]:
    """The first lines of a file that hold a JSON object, by number."""
    lines = {}
    with open(path, encoding="utf-8", errors="replace") as stream:
        for number, text in enumerate(islice(stream, LINES), 1):
            try:
                row = json.loads(text)
            except ValueError:
                continue
            if isinstance(row, dict):
                lines[number] = row
    return lines


def claims(
    raw: Mapping[str, Any], row: Row, decode: Decode, *, judged: bool, train_on: TrainOn = "assistant"
) -> Iterator[Claim]:
    """What the columns of a raw row say of its samples. judged: labels are as the row states them."""
    where = str(row.example.origin)
    yield from _instruction(raw, row, decode, where, train_on)
    if isinstance(row.example, Steps) and judged:
        yield from _steps(raw, row.stored[0], where)
    chosen, rejected = _last_text(raw.get("chosen")), _last_text(raw.get("rejected"))
    if chosen and rejected and not _scored(raw) and not chosen.endswith(rejected) and not rejected.endswith(chosen):
        for content in _preferred(row, judged):
            holds = chosen.endswith(content) or not rejected.endswith(content)
            yield f"{where}: the answer that is preferred is the rejected one", holds
    if isinstance(row.example, Ranking) and judged and isinstance(raw.get("label"), bool) and "completion" in raw:
        yield f"{where}: the label is {raw['label']}", row.stored[0].label == float(raw["label"])


def _instruction(raw: Mapping[str, Any], row: Row, decode: Decode, where: str, train_on: TrainOn) -> Iterator[Claim]:
    """Instruction and input stand in the prompt, and the output in what is trained. If everything is trained, all of
    them stand there."""
    columns = [raw.get(name) for name in ("instruction", "input", "output")]
    whole = [s for s in row.stored if s.stop != "length"]
    if not all(isinstance(text, str) for text in columns) or not isinstance(row.example, Chat) or len(whole) != 1:
        return
    trained = _squash(decode(_side(whole[0], True)))
    prompt, where_to = _squash(decode(_side(whole[0], False))), "the prompt"
    if train_on == "all":
        prompt, where_to = trained, "what is trained"
    for name in ("instruction", "input"):
        yield f"{where}: {name} is not in {where_to}", _squash(str(raw[name])) in prompt
    # Templates write reasoning in marks of their own, and a generation prompt may open it.
    parts = _THOUGHT.split(str(raw["output"]))
    yield f"{where}: output is not in what is trained", all(_squash(part) in trained for part in parts)


def _steps(raw: Mapping[str, Any], s: Sample, where: str) -> Iterator[Claim]:
    """Steps before the first mistake are good, and the mistake is bad."""
    labels = raw.get("labels")
    if "mistake_index" in raw and isinstance(raw.get("steps"), list):
        first = raw["mistake_index"]
        count = len(raw["steps"])
    elif isinstance(labels, list) and all(isinstance(label, bool) for label in labels):
        first = labels.index(False) if False in labels else None
        count = len(labels)
    else:
        return
    if first is not None and (isinstance(first, bool) or not isinstance(first, int) or not 0 <= first < count):
        return
    for number, grade in enumerate(s.grades[: count if first is None else first + 1]):
        good = number != first
        yield f"{where}: step {number + 1} is {'good' if good else 'the first mistake'}", grade[0] == float(good)


def _preferred(row: Row, judged: bool) -> Iterator[str]:
    """The text of the answers of a row that are trained as the better ones."""
    if isinstance(row.example, Chat):
        answers = [m.content for m in row.example.messages if m.role == "assistant"]
        if answers and _squash(answers[-1]):
            yield _squash(answers[-1])
    elif isinstance(row.example, Ranking) and judged:
        for s, r in zip(row.stored, row.rendered, strict=False):
            better = bool(s.beats) or (s.label == 1 and not any(other.beats for other in row.stored))
            if better and r.response is not None and _squash(r.response.message.content):
                yield _squash(r.response.message.content)


def _scored(raw: Mapping[str, Any]) -> bool:
    """Whether a row has numbers beside its answers, which may state another order."""
    for name, value in raw.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and ("chosen" in name or "rejected" in name):
            return True
    return False


def _last_text(value: Any) -> str:
    """The text of an answer, or of the last turn of a conversation; empty for anything else."""
    if isinstance(value, str):
        return _squash(value)
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        return _squash(str(value[-1].get("content") or value[-1].get("value") or ""))
    return ""


def _side(s: Sample, trained: bool) -> list[int]:
    return [token for token, is_trained in zip(s.tokens, s.mask, strict=True) if is_trained == trained]


def _squash(text: str) -> str:
    """Text without white space and what a decoder cannot say."""
    return "".join(text.split()).replace("\ufffd", "")
