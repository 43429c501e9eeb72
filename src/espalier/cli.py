"""Commands. A command reads its config, then imports what does the work: help and config errors answer without torch.

Exit codes: 0 done, 1 `doctor` found a fault, 2 an error the user can act on, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from espalier import __version__
from espalier.errors import ConfigError, EspalierError

Arguments = list[str]


@dataclass(frozen=True)
class Command:
    """`usage` follows the command's name; `body` takes the remaining arguments and returns the exit code."""

    about: str
    usage: str
    body: Callable[[Arguments], int]


def _train(name: str, argv: Arguments) -> int:
    from espalier.assembly.runs import RUNS, RunConfig
    from espalier.config.options import Parser

    config: RunConfig = Parser(*_heading(name), RUNS[name]).read(argv)[0]
    from espalier import run

    try:
        run.train(config)
    except KeyboardInterrupt:
        from espalier.loop.rundir import resumption

        raise KeyboardInterrupt(resumption(Path(config.loop.out))) from None
    return 0


def _training(argv: Arguments) -> tuple[str, Arguments]:
    """The training command whose flags follow: named first (`espalier check dpo --model M ...`), else sft."""
    from espalier.assembly.runs import RUNS

    return (argv[0], argv[1:]) if argv and argv[0] in RUNS else ("sft", argv)


def _check(argv: Arguments) -> int:
    from espalier.assembly.runs import RUNS, RunConfig
    from espalier.config.options import Parser

    name, rest = _training(argv)
    config: RunConfig = Parser(*_heading("check"), RUNS[name]).read(rest, {"out": "runs/check"})[0]
    from espalier import run

    run.check(config)
    return 0


def _inspect(argv: Arguments) -> int:
    from espalier.assembly.runs import RUNS
    from espalier.config.options import Parser
    from espalier.config.sections import InspectConfig

    name, rest = _training(argv)
    parser = Parser(*_heading("inspect"), RUNS[name], InspectConfig, hidden=("loop", "optim"))
    config, shown = parser.read(rest, {"out": "runs/inspect"})
    from espalier import run

    run.inspect(config, rows=shown.rows, html=shown.html)
    return 0


def _export(argv: Arguments) -> int:
    from espalier.config.options import Parser
    from espalier.config.sections import ExportConfig

    config: ExportConfig = Parser(*_heading("export"), ExportConfig, file=False).read(argv)[0]
    from espalier import run

    run.export(config)
    return 0


def _sample(argv: Arguments) -> int:
    from espalier.config.options import Parser
    from espalier.config.sections import SampleConfig

    config: SampleConfig = Parser(*_heading("sample"), SampleConfig, file=False).read(argv)[0]
    from espalier import run

    run.sample(config)
    return 0


def _quickstart(argv: Arguments) -> int:
    from espalier.config.options import Parser
    from espalier.config.sections import QuickstartConfig

    config: QuickstartConfig = Parser(*_heading("quickstart"), QuickstartConfig, file=False).read(argv)[0]
    from espalier import run

    run.quickstart(config)
    return 0


def _doctor(argv: Arguments) -> int:
    from espalier.config.options import Parser

    Parser(*_heading("doctor"), file=False).read(argv)
    from espalier import doctor

    return doctor.main()


_TRAIN = "--model M --data D ... --out RUN [--config F.yaml] [--field value ...]"
_RUN = "--model M --data D ... [--config F.yaml] [--field value ...]"
COMMANDS = {
    **{
        name: Command(about, _TRAIN, partial(_train, name))
        for name, about in (
            ("sft", "Fine-tune a model on instruction data."),
            ("reward", "Train a reward model on ranked or scored answers, and judge it."),
            ("prm", "Train a process reward model on labelled steps."),
            ("dpo", "Learn from pairs and ranked lists against a reference."),
            ("simpo", "Learn from pairs by mean log-probabilities, without a reference."),
            ("orpo", "Learn from pairs by odds ratios beside likelihood, without a reference."),
            ("cpo", "Learn from pairs beside likelihood, without a reference."),
            ("kto", "Learn from answers that are labelled good or bad."),
            ("bco", "Learn from good and bad answers by a binary classifier."),
        )
    },
    "check": Command("Check model and data as a training command would, and stop there.", f"[COMMAND] {_RUN}", _check),
    "inspect": Command("Show rows as the model will see them, trained tokens marked.", f"[COMMAND] {_RUN}", _inspect),
    "export": Command("Write a run's weights as a plain Hugging Face directory.", "--run RUN [--out DIR]", _export),
    "sample": Command("Answer prompts with a model.", "--model M --prompt TEXT ... [--field value ...]", _sample),
    "quickstart": Command("Fine-tune the embedded model on this machine, in minutes.", "[--out RUN]", _quickstart),
    "doctor": Command("Say what this installation and machine can do.", "", _doctor),
}


def _heading(name: str) -> tuple[str, str, str]:
    return f"espalier {name}", COMMANDS[name].usage, COMMANDS[name].about


def main(argv: Arguments | None = None) -> int:
    """Run one command and return its exit code. `--debug`, anywhere, lets errors through with their traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        return _dispatch(arguments)
    except EspalierError as error:
        if debug:
            raise
        _complain("error", str(error))
        return 2
    except KeyboardInterrupt as error:
        if debug:
            raise
        _complain("interrupted", str(error) or "nothing was left half written")
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`| head`); what Python flushes at exit must not fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0


def _dispatch(argv: Arguments) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        _overview()
        return 0
    if argv[0] == "--version":
        print(f"espalier {__version__}")
        return 0
    command = COMMANDS.get(argv[0])
    if command is None:
        from espalier.config.fields import nearest

        way_out = nearest(argv[0], COMMANDS) or f" Commands are {', '.join(COMMANDS)}."
        raise ConfigError(f"{argv[0]}: no such command.{way_out}")
    return command.body(argv[1:])


def _overview() -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    console.print(Text.assemble(("Usage: ", "bold"), "espalier COMMAND [--field value ...]"))
    console.print("\nPost-training for language models.\n")
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, command in COMMANDS.items():
        table.add_row(Text(f"  {name}", style="cyan"), Text(command.about))
    console.print(table)
    console.print(Text("\n`espalier COMMAND --help` lists its flags; --debug shows the traceback of an error."))


def _complain(kind: str, message: str) -> None:
    """One line on stderr; processes of a torchrun other than the first say which they are."""
    from rich.console import Console
    from rich.text import Text

    rank = os.environ.get("RANK", "0")
    line = " ".join(message.splitlines())
    prefix = kind if rank == "0" else f"rank {rank}: {kind}"
    # soft_wrap keeps the line whole, so that it can be searched for and copied.
    Console(stderr=True, highlight=False).print(Text.assemble((f"{prefix}: ", "bold red"), line), soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
