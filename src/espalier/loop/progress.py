"""What a run shows while it goes on: a live bar in a terminal, plain lines elsewhere, tables and notes in both."""

from __future__ import annotations

import math
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

FIRST = 3
"""Steps that always get a plain line: whoever starts a run wants to see that it runs."""


class Progress:
    """Shows the steps of a run; only rank 0 prints.

    `total` is the number of the last step. A terminal gets one live line, anything else a line for each of the first
    steps, then one about every `interval` seconds, and one for the last step. `clock` returns seconds.

    >>> with Progress(2, console=Console(width=80)) as progress:
    ...     progress.update(1, {"loss": 2.5})
    step 1/2  loss 2.5000
    """

    def __init__(
        self,
        total: int,
        *,
        rank: int | None = None,
        console: Console | None = None,
        interval: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total, self.interval, self.clock = total, interval, clock
        self.quiet = (int(os.environ.get("RANK", "0")) if rank is None else rank) != 0
        self.console = console or Console(highlight=False, width=_width())
        self.live = self.console.is_terminal and not self.quiet
        self._start: tuple[float, int] | None = None
        self._printed, self._shown = -math.inf, 0
        self._bar: Bar | None = None

    def __enter__(self) -> Progress:
        if self.live:
            columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[said]}"))
            self._bar = Bar(*columns, console=self.console, refresh_per_second=4)
            self._task = self._bar.add_task("step", total=self.total, said="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Say that optimizer step `step` is done. Of `metrics` the bar shows `loss` and `tokens_per_second`.

        The time left is that of the steps since the first update, which is left out of it: it holds what is done
        once, such as compiling.
        """
        if self.quiet:
            return
        now = self.clock()
        if self._start is None:
            self._start = (now, step)
        self._shown += 1
        said = self.line(step, metrics, now)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, said=said)
        elif self._shown <= FIRST or step == self.total or now - self._printed >= self.interval:
            self._printed = now
            self.console.print(Text(f"step {step}/{self.total}  {said}".rstrip()), soft_wrap=True)

    def line(self, step: int, metrics: Mapping[str, float], now: float) -> str:
        """The figures of one step, in the order loss, speed, time left, memory; what is unknown is left out."""
        parts = []
        if "loss" in metrics:
            parts.append(f"loss {metrics['loss']:.4f}")
        if "tokens_per_second" in metrics:
            parts.append(f"{metrics['tokens_per_second']:,.0f} tokens/s")
        began, first = self._start or (now, step)
        if step > first:
            parts.append(f"{duration((now - began) / (step - first) * (self.total - step))} left")
            parts.append(f"{peak_memory() / 2**30:.2f} GiB")
        return "  ".join(parts)

    def reading(self, what: str) -> Callable[[str, int], None]:
        """A function to be told (source, count) as a source is read; it prints a line about every `interval` seconds.

        What takes less than that is not worth a line.
        """
        said = self.clock()

        def tell(source: str, count: int) -> None:
            nonlocal said
            if self.clock() - said >= self.interval:
                said = self.clock()
                self.note(f"{source}: {count:,} {what}")

        return tell

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a table; columns whose cells are all numbers stand to the right."""
        if self.quiet:
            return
        table = Table(title=Text(title), title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
        cells = [[f"{c:,}" if isinstance(c, int) and not isinstance(c, bool) else str(c) for c in row] for row in rows]
        for index, name in enumerate(columns):
            column = [row[index] for row in rows]
            numbers = bool(column) and all(isinstance(c, int | float) and not isinstance(c, bool) for c in column)
            table.add_column(Text(name), justify="right" if numbers else "left", overflow="fold")
        for row in cells:
            table.add_row(*(Text(cell) for cell in row))
        self.console.print(table)

    def note(self, text: str) -> None:
        """Print one line, above the bar where there is one."""
        if not self.quiet:
            self.console.print(Text(text), soft_wrap=True)


def _width() -> int | None:
    """Log files take wider tables than the 80 columns that rich assumes; terminals and COLUMNS go first."""
    return None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120


def duration(seconds: float) -> str:
    """Seconds in the two largest units that matter.

    >>> [duration(s) for s in (9.4, 75, 3_725, 200_000)]
    ['9s', '1m15s', '1h02m', '2d07h']
    """
    s = max(0, round(seconds))
    if s < 60:
        return f"{s}s"
    if s < 3600:
        return f"{s // 60}m{s % 60:02d}s"
    if s < 86400:
        return f"{s // 3600}h{s % 3600 // 60:02d}m"
    return f"{s // 86400}d{s % 86400 // 3600:02d}h"


def peak_memory() -> int:
    """Most bytes held so far: on the CUDA device where one is in use, else by this process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
