"""How flags, YAML and Python meet: all three build the same frozen dataclasses, and there is no second list of fields.

A config class is either one section, or a dataclass whose fields are sections; either way its keys form one flat
namespace: `samples_per_step` in YAML, `--samples-per-step` as a flag. Flags go before YAML, YAML before defaults.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar, get_origin

from pydantic.fields import FieldInfo

from espalier.config.data_source import DataSource
from espalier.config.fields import Known, expected, infos, literals, show
from espalier.errors import ConfigError, nearest

T = TypeVar("T")

PER_CALL = ("resume", "resume_from", "accept_changes", "overwrite")
"""Keys about one call of a command, which a replayable file leaves out: a replay must not remove or continue a run."""


@dataclass(frozen=True)
class Option:
    """One key of a config: the attribute its section has in the config ("" in a single section), and what it holds."""

    name: str
    group: str
    info: FieldInfo

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def groups(cls: type) -> dict[str, type]:
    """The sections of a config class by attribute name; a section alone stands under the empty name.

    A class with `sections` names those that a user sees, in their order; the others stay at their defaults.
    """
    kinds: dict[str, Any] = {name: info.annotation for name, info in infos(cls).items()}
    sections = {name: kind for name, kind in kinds.items() if hasattr(kind, "__pydantic_fields__")}
    if not sections:
        return {"": cls}
    return {name: sections[name] for name in getattr(cls, "sections", sections)}


def options(cls: type) -> dict[str, Option]:
    """Every key of a config class, in the order of its sections. Raises TypeError if two sections share a name."""
    keys: dict[str, Option] = {}
    for group, kind in groups(cls).items():
        for name, info in infos(kind).items():
            if name in keys:
                raise TypeError(f"{cls.__name__}: {name} is a field of both {keys[name].group} and {group}")
            keys[name] = Option(name, group, info)
    return keys


# ---------------------------------------------------------------------------------------------- values and their places


@dataclass(frozen=True)
class Value:
    """A value and the place it was given at: `--lr`, or `f.yaml:3: lr`."""

    value: Any
    place: str


def build(cls: type[T], values: Mapping[str, Any | Value]) -> T:
    """The config with these keys, defaults elsewhere. Raises ConfigError, which names the place of a bad value."""
    known = options(cls)
    given = {key: value if isinstance(value, Value) else Value(value, key) for key, value in values.items()}
    for key, entry in given.items():
        if key not in known:
            way_out = nearest(key, known)
            if isinstance(entry.value, dict):
                way_out = " Configs are flat: its keys stand at the top level."
            way_out = way_out or " `--help` lists them: flags without their dashes, with _ for -."
            place = entry.place if len(entry.place) <= 120 else f"{entry.place[:117]}..."
            raise ConfigError(f"{place}: no such key.{way_out}", key=key)
    for key, option in known.items():
        if option.info.is_required() and key not in given:
            what = " ".join((option.info.description or expected(option.info)).split())
            raise ConfigError(f"{key} is missing: {what} Give {option.flag}, or `{key}:` in a config file", key=key)
    try:
        sections = {}
        for group, kind in groups(cls).items():
            sections[group] = kind(**{key: given[key].value for key in infos(kind) if key in given})
        return sections[""] if "" in sections else cls(**sections)
    except ConfigError as error:
        if error.key not in given:
            raise
        raise ConfigError(given[error.key].place + str(error).removeprefix(error.key), key=error.key) from None


def flat(config: Any) -> dict[str, Any]:
    """All keys of a config as one dictionary; `build(type(config), flat(config)) == config`."""
    keys = {}
    for group in groups(type(config)):
        section = getattr(config, group) if group else config
        for field in dataclasses.fields(section):
            keys[field.name] = getattr(section, field.name)
    return keys


def dump(config: Any) -> str:
    """A config as YAML that `load` reads back, under the headings of its sections, without the keys in PER_CALL."""
    lines = []
    for group, kind in groups(type(config)).items():
        lines.append(f"\n# {(kind.__doc__ or group).strip().splitlines()[0]}")
        part = getattr(config, group) if group else config
        for name in infos(kind):
            if name in PER_CALL:
                continue
            lines.append(_line(name, getattr(part, name)))
    return "\n".join(lines).lstrip("\n") + "\n"


def _line(name: str, value: Any) -> str:
    import yaml

    items = [_item(item) for item in value] if isinstance(value, tuple) else [str(value)]
    # PyYAML writes these line separators bare between single quotes, and reads them back as spaces.
    style = '"' if set(str(items) + "".join(map(str, items))) & set("\x85\u2028\u2029") else None
    if isinstance(value, tuple):
        line = yaml.safe_dump(
            items, default_flow_style=True, default_style=style, allow_unicode=True, width=10**6, sort_keys=False
        )
        return f"{name}: {line.rstrip()}"
    return yaml.safe_dump({name: value}, default_style=style, allow_unicode=True, width=10**6).rstrip("\n")


def _item(value: Any) -> Any:
    """An item of a list as YAML has it: a text, or the settings of a source."""
    return value.written() if isinstance(value, DataSource) else str(value)


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}. Check the path given to --config") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8. Save the file as UTF-8") from None


def read(path: str | Path) -> dict[str, Value]:
    """The keys of a YAML file. Raises ConfigError with the line of what is not YAML, not flat, or there twice."""
    import yaml

    text = _text(path)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return {}
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError(
                f"{path}:{node.start_mark.line + 1}: expected lines of `key: value`, got {show(text[:40])}"
            )
        entries: dict[str, Value] = {}
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            # PyYAML keeps the last of two equal keys, so that a forgotten line would win or lose in silence.
            if key in entries:
                first = entries[key].place.removesuffix(f": {key}")
                raise ConfigError(f"{path}:{line}: {key}: given twice, first at {first}. Remove one", key=key)
            entries[key] = Value(loader.construct_object(value_node, deep=True), f"{path}:{line}: {key}")
        return entries
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise ConfigError(
            f"{path}:{line}: not valid YAML: {error.problem}. Write `key: value` with plain text, numbers and lists"
        ) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None


def load(cls: type[T], path: str | Path) -> T:
    """The config that a YAML file describes."""
    return build(cls, read(path))


# ---------------------------------------------------------------------------------------------------------------- flags


class Parser(argparse.ArgumentParser):
    """Flags of one command, generated from config classes. Errors are ConfigErrors; help is printed by section."""

    def __init__(
        self,
        prog: str,
        usage: str,
        about: str,
        *classes: type,
        hidden: Collection[str] = (),
        file: bool = True,
        names: Mapping[str, Sequence[str]] | None = None,
    ):
        """`hidden` sections are accepted and left out of the help; `file` adds `--config`; `names` are the values of
        some keys that the help lists, by key."""
        super().__init__(prog=prog, allow_abbrev=False, argument_default=argparse.SUPPRESS)
        self.usage_line, self.about, self.classes, self.hidden, self.file = usage, about, classes, hidden, file
        self.names = names or {}
        if file:
            self.add_argument("--config")
        for cls in classes:
            for option in options(cls).values():
                kind = option.info.annotation
                if kind is bool:
                    self.add_argument(option.flag, dest=option.name, action=argparse.BooleanOptionalAction)
                elif get_origin(kind) is tuple:
                    self.add_argument(option.flag, dest=option.name, action="extend", nargs="*")
                else:
                    self.add_argument(option.flag, dest=option.name)

    def read(self, argv: list[str], fallback: Mapping[str, Any] | None = None) -> list[Any]:
        """One config for each class, from flags, then the file of `--config` (for the first class), then `fallback`."""
        space, rest = self.parse_known_args(argv)
        if rest:
            self.unknown(rest[0])
        given = vars(space)
        path = given.pop("config", None)
        flags = {key: Value(value, "--" + key.replace("_", "-")) for key, value in given.items()}
        in_file = read(path) if path else {}
        merged = {**(fallback or {}), **in_file, **flags}
        built: list[Any] = []
        for cls in self.classes:
            others = {key for other in self.classes if other is not cls for key in options(other)}
            built.append(build(cls, {key: v for key, v in merged.items() if key not in others}))
        return built

    def unknown(self, argument: str) -> NoReturn:
        """Raise ConfigError about an argument that no flag takes."""
        if not argument.startswith("-"):
            raise ConfigError(f"{argument}: unexpected argument; every value follows its flag. See {self.prog} --help")
        names = [s for action in self._actions for s in action.option_strings if s.startswith("--")]
        name = argument.split("=")[0]
        close = nearest(name.lstrip("-"), [s[2:].replace("-", "_") for s in names])
        close = close.replace("mean ", "mean --").replace("_", "-") if close else f" See {self.prog} --help"
        raise ConfigError(f"{name}: no such flag.{close}", key=name)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(
            f"{message.removeprefix('argument ').replace('one argument', 'a value')}. See {self.prog} --help"
        )

    def print_help(self, file: IO[str] | None = None) -> None:  # type: ignore[override]
        """Usage, what the command does, and each section's flags with what they hold, their effect and default.

        Left out are flags that the command refuses (`refused` of its config class) and those of hidden sections.
        """
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console(file=file, highlight=False)
        console.print(Text.assemble(("Usage: ", "bold"), f"{self.prog} {self.usage_line}"))
        console.print(Text(f"\n{self.about}"))
        for cls in self.classes:
            for group, kind in groups(cls).items():
                if group in self.hidden:
                    continue
                console.print(Text.assemble(("\n" + _title(kind), "bold"), f"  {_summary(kind)}"))
                table = Table.grid(padding=(0, 2, 0, 0))
                table.add_column(width=32, overflow="fold")
                table.add_column(ratio=1)
                for option in options(cls).values():
                    if option.group == group and option.name not in getattr(cls, "refused", ()):
                        table.add_row(*_row(option, self.names.get(option.name, ())))
                console.print(table)
        if self.file:
            console.print(
                Text.assemble(
                    ("\nFile", "bold"),
                    "  --config F.yaml holds the same keys, one `key: value` a line; flags go first.",
                )
            )
        if self.hidden:
            console.print(Text(f"Flags of {' and '.join(self.hidden)} are accepted as in `espalier sft`."))


def _title(kind: type) -> str:
    """A section's name; that of the section it is derived from, if only defaults differ."""
    same = kind
    for base in kind.__mro__:
        if "__pydantic_fields__" in vars(base) and set(infos(base)) == set(infos(kind)):
            same = base
    return same.__name__.removesuffix("Config")


def _summary(kind: type) -> str:
    """The first line of a section's docstring, whole if a formula follows it."""
    first = (kind.__doc__ or "").strip().splitlines()[0]
    return f"{first[:-1]}." if first.endswith(":") else first


def _placeholder(kind: Any) -> str:
    if kind is int:
        return "N"
    return "X" if kind is float else "TEXT"


def _row(option: Option, names: Sequence[str]) -> tuple[Any, Any]:
    """One option of the help: the flag with what it holds, and its effect, values and default."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    info, kind = option.info, option.info.annotation
    choices, several = literals(kind), get_origin(kind) is tuple
    text = " ".join((info.description or "").split())
    if names:
        text += f" One or more of {', '.join(names)}."
    if kind is bool:
        flag = Text(f"  --[no-]{option.flag[2:]}", style="cyan")
    else:
        holds = "|".join(choices) or _placeholder(kind)
        if len(holds) > 18:
            holds, text = "NAME", f"{text} One of {', '.join(choices)}."
        flag = Text.assemble((f"  {option.flag} ", "cyan"), (holds + (" ..." if several else ""), "dim"))
    effect = Text(text)
    default = None if info.is_required() else info.get_default(call_default_factory=True)
    if info.is_required():
        effect.append("  required", "yellow")
    elif default not in ("", ()) and default is not False:
        effect.append(f"  [{_default(default)}]", "dim")
    for known in info.metadata:
        if isinstance(known, Known):
            table = Table.grid(padding=(0, 2, 0, 0))
            for name, what in known.names.items():
                table.add_row(Text(name, "dim"), Text(what, "dim"))
            return flag, Group(effect, table)
    return flag, effect


def _default(value: Any) -> str:
    """A default as a user types it: the items of a list with spaces between."""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    if value is True:
        return "on"
    return f"{value:g}" if isinstance(value, float) else str(value)
