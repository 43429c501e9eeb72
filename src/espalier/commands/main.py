"""Commands. A command reads its config, then imports what does the work: help and config errors answer without torch.

Exit codes: 0 done, 1 `doctor` or `rollout --grade-answers` found a fault, 2 an error the user can act on, 130
interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from espalier import __version__
from espalier.assembly.rollout_run import RolloutRun
from espalier.assembly.runs import RUNS, RunConfig
from espalier.checks.start import NAMES as CHECK_NAMES
from espalier.checks.start import refuse_unknown
from espalier.config.options import Parser
from espalier.config.overopt_section import OveroptConfig
from espalier.config.sections import ExportConfig, InspectConfig, QuickstartConfig, SampleConfig, ScoreConfig
from espalier.errors import ConfigError, EspalierError, nearest
from espalier.files import disk_full

Arguments = list[str]
_FLAGS = "[--config F.yaml] [--field value ...]"


@dataclass(frozen=True)
class Command:
    """One command: `espalier NAME`.

    config: the dataclass that its flags and its file build; None for a command without flags. run: what does the work,
    as "module:function", imported once the config is right; it takes the config and returns an exit code, or None for
    0. about and usage are for the help. out: of a command that does what a training command would (`espalier check dpo
    ...`; sft if none is named), the folder it writes to; its own config, if any, comes after that command's.
    """

    name: str
    config: type | None
    run: str
    about: str
    usage: str = ""
    out: str = ""

    def start(self, argv: Arguments) -> int:
        """Build the config from the arguments, then run. Raises ConfigError."""
        configs = self.configs(argv)
        for config in configs:
            if isinstance(config, RunConfig):
                refuse_unknown(config.loop.skip_checks)
        module, _, function = self.run.partition(":")
        run: Callable[..., int | None] = getattr(importlib.import_module(module), function)
        return run(*configs) or 0

    def configs(self, argv: Arguments) -> list[object]:
        """One config for each class that the command takes."""
        classes = [self.config] if self.config else []
        if not self.out:
            return self._parser(*classes, file=self.name in RUNS).read(argv)
        training = argv[0] if argv and argv[0] in RUNS else "sft"
        rest = argv[1:] if argv and argv[0] in RUNS else argv
        hidden = ("loop", "optim") if classes else ()
        return self._parser(RUNS[training], *classes, hidden=hidden).read(rest, {"out": self.out})

    def _parser(self, *classes: type, hidden: tuple[str, ...] = (), file: bool = True) -> Parser:
        return Parser(
            f"espalier {self.name}",
            self.usage,
            self.about,
            *classes,
            hidden=hidden,
            file=file,
            names={"skip_checks": CHECK_NAMES},
        )


COMMANDS = {
    command.name: command
    for command in (
        *(
            Command(name, run, "espalier.commands.train:run", run.about, f"--model M --data D ... --out RUN {_FLAGS}")
            for name, run in RUNS.items()
        ),
        Command(
            "check",
            None,
            "espalier.commands.check:run",
            "Check model and data as a training command would, and stop there.",
            f"[COMMAND] --model M --data D ... {_FLAGS}",
            out="runs/check",
        ),
        Command(
            "inspect",
            InspectConfig,
            "espalier.commands.inspect:run",
            "Show rows as the model will see them, trained tokens marked.",
            f"[COMMAND] --model M --data D ... {_FLAGS}",
            out="runs/inspect",
        ),
        Command(
            "export",
            ExportConfig,
            "espalier.commands.export:run",
            "Write a run's weights, or a base with an adapter merged into it, as a plain Hugging Face directory.",
            "--run RUN [--merge] [--out DIR] | --model BASE --adapter A --out DIR",
        ),
        Command(
            "rollout",
            RolloutRun,
            "espalier.commands.rollout:run",
            RolloutRun.about,
            "--model M --data TASKS --reward R ... --out DIR [--grade-answers] | --regrade RUN --reward R --out DIR",
        ),
        Command(
            "sample",
            SampleConfig,
            "espalier.commands.sample:run",
            "Answer prompts with a model.",
            "--model M --prompt TEXT ... [--field value ...]",
        ),
        Command(
            "score",
            ScoreConfig,
            "espalier.commands.score:run",
            "Write the scores of a reward model or process reward model.",
            "--model RM --data D ... [--out scores.jsonl]",
        ),
        Command(
            "overopt",
            OveroptConfig,
            "espalier.commands.overopt:run",
            "Measure how far a policy goes against proxy rewards before a gold reward falls.",
            f"--model M --data TASKS --pairs P.jsonl --gold REWARD --out DIR {_FLAGS}",
        ),
        Command(
            "quickstart",
            QuickstartConfig,
            "espalier.commands.quickstart:run",
            "Fine-tune the embedded model on this machine, in minutes.",
            "[--out RUN]",
        ),
        Command("doctor", None, "espalier.commands.doctor:run", "Say what this installation and machine can do."),
    )
}


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
    except OSError as error:
        if debug:
            raise
        _complain("error", _of_system(error))
        return 2
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0


def _of_system(error: OSError) -> str:
    """One line about what the operating system refused: a full disk, a permission, a name."""
    # shutil.Error holds a list of (from, to, reason).
    causes = error.args[0] if error.args and isinstance(error.args[0], list) else []
    if causes:
        return f"{causes[0][0]} was not copied: {causes[0][-1]} (--debug shows where)"
    place = f"{error.filename}: " if error.filename else ""
    way_out = "free some space" if disk_full(error) else "check that it is there, and that you may read and write it"
    return f"{place}{error.strerror or error}; {way_out} (--debug shows where)"


def _dispatch(argv: Arguments) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        _overview()
        return 0
    if argv[0] == "--version":
        print(f"espalier {__version__}")
        return 0
    command = COMMANDS.get(argv[0])
    if command is None:
        way_out = nearest(argv[0], COMMANDS) or f" Commands are {', '.join(COMMANDS)}."
        raise ConfigError(f"{argv[0]}: no such command.{way_out}")
    return command.start(argv[1:])


def _overview() -> None:
    from rich.table import Table
    from rich.text import Text

    from espalier.loop.terminal import Terminal

    console = Terminal(highlight=False)
    console.print(Text.assemble(("Usage: ", "bold"), "espalier COMMAND [--field value ...]"))
    console.print("\nPost-training for language models.\n")
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, command in COMMANDS.items():
        table.add_row(Text(f"  {name}", style="cyan"), Text(command.about))
    console.print(table)
    console.print(Text("\n`espalier COMMAND --help` lists its flags; --debug shows the traceback of an error."))


def _complain(kind: str, message: str) -> None:
    """One line on stderr; processes of a torchrun other than the first say which they are."""
    from rich.text import Text

    from espalier.loop.terminal import Terminal

    rank = os.environ.get("RANK", "0")
    line = " ".join(message.splitlines())
    prefix = kind if rank == "0" else f"rank {rank}: {kind}"
    # soft_wrap keeps the line whole, so that it can be searched for and copied.
    Terminal(stderr=True, highlight=False).print(Text.assemble((f"{prefix}: ", "bold red"), line), soft_wrap=True)
