"""`espalier inspect`: rows as the model will see them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from espalier.assembly.data import renderer_of
from espalier.assembly.runs import RunConfig
from espalier.commands import rows_page, rows_view
from espalier.config.sections import InspectConfig
from espalier.data.columns.ledger import Ledger
from espalier.data.dataset import sources_of
from espalier.data.read import Source, read
from espalier.data.render.renderer import Renderer
from espalier.data.render.templates import apply_template, complete, markup_of
from espalier.errors import RowError
from espalier.loop.terminal import Terminal
from espalier.models.load import load_tokenizer, locate, read_limit
from espalier.models.stops import stops_of
from espalier.models.tokens import add_to_tokenizer


def run(config: RunConfig, view: InspectConfig) -> None:
    """Show the first rows of each source as the model will see them, and what was read of them.

    Raises DataError after that if they hold something that a run would not leave out without a word.
    """
    tokenizer = load_tokenizer(config.model.model, trust_remote_code=config.model.trust_remote_code)
    added, template = config.model.add_tokens, config.model.template
    add_to_tokenizer(tokenizer, added, markup_of(tokenizer, added, template))
    if config.model.adapter:
        _adopt_tokens(tokenizer, config)
    apply_template(tokenizer, config.model.template)
    completed = complete(tokenizer)
    adapter = Path(config.model.adapter).expanduser() if config.model.adapter else None
    stops = stops_of(locate(config.model.model, weights=False), adapter)
    renderer = renderer_of(config, tokenizer, read_limit(config.model.model), stops)
    console = Terminal(highlight=False)
    if completed:
        console.print(completed, markup=False, soft_wrap=True)
    rows: list[tuple[str, list[Any]]] = []
    ledgers: list[tuple[Source, Ledger]] = []
    for source in sources_of(config.data, renderer.form.consumes).trained:
        ledger = Ledger()
        ledgers.append((source, ledger))
        rows += _rendered(source, ledger, renderer, view.rows, console)
    rows_view.show(rows, tokenizer, console)
    for source, ledger in ledgers:
        for line in ledger.lines():
            console.print(f"{source.name}: {line}", markup=False, soft_wrap=True)
    if view.html:
        rows_page.html(rows, tokenizer, Path(view.html))
        console.print(f"written: {view.html}", markup=False)
    for source, ledger in ledgers:
        ledger.refuse(source.path)


def _adopt_tokens(tokenizer: Any, config: RunConfig) -> None:
    """Give the tokenizer what that of the adapter that is continued has beside."""
    from espalier.models.adapter_files import read_adapter
    from espalier.models.adapter_tokens import adopt_tokens
    from espalier.models.load import tokenizer_beside

    adapter = read_adapter(config.model.adapter)
    theirs = tokenizer_beside(adapter.folder, trust_remote_code=config.model.trust_remote_code)
    adopt_tokens(tokenizer, adapter, theirs, template=not config.model.template)


def _rendered(
    source: Source, ledger: Ledger, renderer: Renderer, count: int, console: Console
) -> Iterator[tuple[str, list[Any]]]:
    """The rows of a source that can be rendered, up to `count`, each with its place; prints why others cannot."""
    examples = read(source, ledger)
    good = rejected = 0
    while good < count and (example := next(examples, None)) is not None:
        where = source.path if isinstance(example, RowError) else f"{source.path}:{example.origin.line}"
        try:
            if isinstance(example, RowError):
                raise example
            rendered = renderer.render(example)
        except RowError as error:
            rejected += 1
            if rejected <= count:
                console.print(f"rejected: {error.at(where)}", markup=False, soft_wrap=True)
            continue
        good += 1
        yield str(example.origin), rendered
    if rejected > count:
        console.print(f"and {rejected - count:,} more rows are rejected before the last one shown", markup=False)
