"""What a run shows on the console: a live bar in a terminal, plain lines elsewhere, tables and notes in both."""

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

from espalier.loop.terminal import Terminal, visible

DRAWING = 3
"""Lines about answers that are drawn come so many times less often than those about steps."""
FIRST = 3
"""The first steps always get a plain line: whoever starts a run wants to see that it runs."""


class Progress:
    """Shows the steps of a run; only rank 0 prints.

    `total` is the number of the last step. A terminal gets one live line. Anything else gets a line for each of the
    first steps, then one about every `interval` seconds, and one for the last step. `rank` is that of this process,
    unless given the environment's RANK. `clock` returns seconds.

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
        if rank is None:
            rank = int(os.environ.get("RANK", "0"))
        self.quiet = rank != 0
        self.console = console or Terminal(highlight=False, width=_width())
        self.live = self.console.is_terminal and not self.quiet
        self._start: tuple[float, int] | None = None
        self._last_line, self._updates = -math.inf, 0
        self._drawing, self._last_answers = "", -math.inf
        self._bar: Bar | None = None

    def __enter__(self) -> Progress:
        if self.live:
            columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[figures]}"))
            self._bar = Bar(*columns, console=self.console, refresh_per_second=4)
            self._task = self._bar.add_task("step", total=self.total, figures="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show that step `step` is done. Of `metrics` it shows `loss` (of rollouts `reward`, `length` and `kl`: their
        loss says nothing) and `tokens_per_second`.

        The time left is estimated from the steps since the first update. The first one is left out, because it
        includes work that is done once, such as compiling.
        """
        if self.quiet:
            return
        now = self.clock()
        if self._start is None:
            self._start = (now, step)
        self._updates += 1
        figures = self.line(step, metrics, now)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, figures=figures)
        elif self._updates <= FIRST or step == self.total or now - self._last_line >= self.interval:
            self._last_line = now
            self.console.print(Text(f"step {step}/{self.total}  {figures}".rstrip()), soft_wrap=True)

    def answers(self, what: str, graded: int, total: int) -> None:
        """Show how many of the answers to `what` are graded: in the live line, else as a line about every 3 `interval`
        seconds, so that a step that takes minutes is seen to work."""
        if self.quiet:
            return
        now = self.clock()
        if what != self._drawing:
            self._drawing, self._last_answers = what, now
        line = f"{what}: {graded:,} of {total:,} answers"
        if self._bar is not None:
            self._bar.update(self._task, figures=line)
        elif now - self._last_answers >= DRAWING * self.interval:
            self._last_answers = now
            self.note(line)

    def line(self, step: int, metrics: Mapping[str, float], now: float) -> str:
        """The figures of one step, in the order loss (or reward, length and kl), speed, time left, memory; what is
        unknown is left out."""
        parts = []
        figures = {"reward": ".3f", "length": ".1f", "kl": ".4f"} if "sampled_tokens" in metrics else {"loss": ".4f"}
        for name, digits in figures.items():
            if name in metrics:
                parts.append(f"{name} {metrics[name]:{digits}}")
        if "tokens_per_second" in metrics:
            parts.append(f"{metrics['tokens_per_second']:,.0f} tokens/s")
        began, first = self._start or (now, step)
        if step > first:
            parts.append(f"{duration((now - began) / (step - first) * (self.total - step))} left")
            parts.append(f"{peak_memory() / 2**30:.2f} GiB")
        return "  ".join(parts)

    def reading(self, what: str) -> Callable[[str, int], None]:
        """A function to call with (source, count) while a source is read; it prints a line about every `interval`
        seconds. `what` names what is counted. A source that is read faster gets no line.
        """
        last_line = self.clock()

        def report(source: str, count: int) -> None:
            nonlocal last_line
            if self.clock() - last_line >= self.interval:
                last_line = self.clock()
                self.note(f"{source}: {count:,} {what}")

        return report

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a table; columns of numbers are aligned to the right."""
        if self.quiet:
            return
        heading = Text(visible(title))
        table = Table(title=heading, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
        for index, name in enumerate(columns):
            numbers = bool(rows) and all(_is_number(row[index]) for row in rows)
            table.add_column(Text(visible(name)), justify="right" if numbers else "left", overflow="fold")
        for row in rows:
            table.add_row(*[_cell(value) for value in row])
        self.console.print(table)

    def note(self, text: str) -> None:
        """Print one line, above the bar if there is one."""
        if not self.quiet:
            self.console.print(Text(text), soft_wrap=True)


def _is_number(value: object) -> bool:
    # A Boolean is an int to Python, and a word to the reader.
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: object) -> Text:
    """A cell's text; whole numbers with commas between thousands."""
    if isinstance(value, int) and _is_number(value):
        return Text(f"{value:,}")
    return Text(visible(str(value)))


def _width() -> int | None:
    """Columns of a log file: 120, because rich assumes 80, too few for tables. None for a terminal or with COLUMNS set:
    rich knows these."""
    return None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120


def duration(seconds: float) -> str:
    """Seconds in the two largest units that matter.

    >>> [duration(seconds) for seconds in (9.4, 75, 3_725, 200_000)]
    ['9s', '1m15s', '1h02m', '2d07h']
    """
    whole = max(0, round(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if not minutes:
        return f"{whole}s"
    if not hours:
        return f"{minutes}m{whole % 60:02d}s"
    if not days:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{days}d{hours % 24:02d}h"


def peak_memory() -> int:
    """The most bytes held so far: on the CUDA device if one is in use, else by this process."""
    # Looked up, not imported: without torch nothing is on a device, and the import takes seconds.
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak if sys.platform == "darwin" else peak * 1024


def resident_memory() -> int:
    """The bytes held now: this process's resident memory and, beside them, what it has allocated on a CUDA device.
    Without /proc, the most that were resident so far."""
    torch = sys.modules.get("torch")
    on_device = int(torch.cuda.memory_allocated()) if torch is not None and torch.cuda.is_initialized() else 0
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize() + on_device
    except OSError:
        return peak_memory()
