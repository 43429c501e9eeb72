"""What each command makes of files whose columns it has never seen.

    python scripts/layouts.py FOLDER [NAME ...] [--commands sft dpo ...] [--model M] [--template T] [--columns A=B ...]

For every JSONL file of a folder (those whose names begin with a NAME, if any are given) and every command, prints how
the file is read: the format, the roles and first words of the turns as they are rendered, with a star where they are
trained, the judgements, and the columns that are not read; or the error. If that proposes a mapping, the file is read
again with it. Ends in a table of counts.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espalier import embedded
from espalier.assembly.data import renderer_of
from espalier.assembly.runs import RUNS
from espalier.config.sections import DataConfig, LoopConfig, ModelConfig
from espalier.data.columns.ledger import Ledger
from espalier.data.dataset import sources_of
from espalier.data.read import read
from espalier.data.render.drafts import Rendered
from espalier.data.render.templates import apply_template
from espalier.errors import EspalierError, RowError
from espalier.models.load import load_tokenizer

COMMANDS = ("sft", "dpo", "reward", "prm", "kto")
WORDS = 48
"""Characters shown of a turn."""


@dataclass
class Reader:
    """One command, with the renderer of its data."""

    command: str
    tokenizer: Any
    model: str

    def lines(self, path: Path, columns: Sequence[str] = ()) -> Iterator[str]:
        """What the command makes of a file. Raises EspalierError if a run would be refused."""
        data = DataConfig(data=(str(path),), columns=tuple(columns))
        config = RUNS[self.command](model=ModelConfig(self.model), data=data, loop=LoopConfig("out"))
        renderer = renderer_of(config, self.tokenizer, None, ())
        source, ledger = sources_of(data, renderer.form.consumes).main[0], Ledger()
        for example in read(source, ledger):
            if isinstance(example, RowError):
                raise example
            for number, one in enumerate(renderer.render(example)):
                yield f"    {self.turns(one)}{_judged(one, number)}"
        ledger.refuse(str(path))
        for line in ledger.lines():
            yield f"    {line}"

    def turns(self, one: Rendered) -> str:
        parts = []
        for span in one.spans:
            ids = one.sample.tokens[span.start : span.end]
            text = self.tokenizer.decode(ids, skip_special_tokens=True).strip()
            short = text if len(text) <= WORDS else f"{text[:WORDS]}.."
            parts.append(f"{span.role}{'*' if any(one.sample.mask[span.start : span.end]) else ''} {short!r}")
        return "  ".join(parts)


def _judged(one: Rendered, number: int) -> str:
    s = one.sample
    facts = [f"beats {s.beats}" if s.beats else "", f"ties {s.ties}" if s.ties else ""]
    facts.append("" if s.label is None else f"label {s.label:g}")
    facts.append(f"grades {s.grades}" if s.grades else "")
    return "".join(f"  {fact}" for fact in [f"[{number}]", *facts] if fact)


def proposed(error: EspalierError) -> list[str]:
    """The mapping that an error proposes; empty if it has none."""
    match = re.search(r"[Tt]ry --columns (.*?)(?:, or name a format|$)", str(error))
    return shlex.split(match.group(1)) if match else []


def judge(reader: Reader, path: Path, columns: Sequence[str]) -> str:
    """Print what a command makes of a file; returns the kind of outcome."""
    print(f"  {reader.command}")
    try:
        print("\n".join(reader.lines(path, columns)))
        return "read"
    except EspalierError as error:
        print(f"    refused: {str(error).replace(str(path), path.name)}")
        mapping = proposed(error)
        if not mapping:
            return "refused, left out" if "leaves out" in str(error) else "refused"
    print(f"  {reader.command} --columns {' '.join(mapping)}")
    try:
        print("\n".join(reader.lines(path, mapping)))
        return "refused, mapping works"
    except EspalierError as error:
        print(f"    refused: {error}")
        return "refused, mapping fails"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--commands", nargs="+", default=COMMANDS, choices=COMMANDS)
    parser.add_argument("--model", default=str(embedded.path()))
    parser.add_argument("--template", default="plain")
    parser.add_argument("--columns", nargs="+", default=())
    given = parser.parse_args()
    tokenizer = load_tokenizer(given.model, trust_remote_code=False)
    apply_template(tokenizer, given.template)
    counts: dict[str, Counter[str]] = {command: Counter() for command in given.commands}
    for path in sorted(given.folder.glob("*.jsonl")):
        if given.names and not path.name.startswith(tuple(given.names)):
            continue
        print(f"\n{path.name}")
        for command in given.commands:
            counts[command][judge(Reader(command, tokenizer, given.model), path, given.columns)] += 1
    print()
    for command, kinds in counts.items():
        print(f"{command:8}" + ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())))


if __name__ == "__main__":
    main()
