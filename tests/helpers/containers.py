"""Examples read from a file of any container."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from espalier.data.read import parse_source, read

PAIR = {"prompt": "q", "answer": "a"}


def examples(path: str | Path, **options: Any) -> list[Any]:
    return list(read(replace(parse_source(str(path)), **options)))


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
