"""Rewards that a user writes: a function in a file, in one of three forms that its parameters tell apart.

    own     reward(prompt, response, **task) -> float | None | dict
    TRL     reward(prompts, completions, **columns) -> list         (huggingface/trl, GRPOTrainer's reward functions)
    verl    compute_score(data_source, solution_str, ground_truth, extra_info)    (verl-project/verl)

Only worker processes load such a file: nothing in it runs in the process that trains.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from espalier.errors import ConfigError
from espalier.rewards.results import Result, read, read_scored
from espalier.rewards.reward import Answer, Settings

Form = Literal["own", "trl", "verl"]
FORMS = (
    "(prompt, response, **task), TRL's (prompts, completions, **columns) or verl's (data_source, solution_str, "
    "ground_truth, extra_info)"
)


@dataclass(frozen=True, slots=True)
class UserFunction:
    """A loaded function, how it is called, and what is to be said of that."""

    function: Callable[..., Any]
    form: Form
    batched: bool
    is_async: bool
    messages: bool
    note: str

    def calls(self, answers: Sequence[Answer]) -> Any:
        """Call it with one answer, or, if it is batched, with all of them. What an async function returns is to be
        awaited."""
        if self.form == "trl":
            return self.function(**self._keep(self._columns(answers)))
        if self.form == "verl":
            return self.function(**self._keep(_verl(answers[0])))
        if self.batched:
            lists = _lists([answer.fields() for answer in answers])
            lists |= {"prompt": [a.prompt for a in answers], "response": [a.response for a in answers]}
            return self.function(**self._keep(lists))
        answer = answers[0]
        return self.function(**self._keep({**answer.fields(), "prompt": answer.prompt, "response": answer.response}))

    def results(self, value: Any, count: int) -> list[Result]:
        """The results of a call with `count` answers. Raises TypeError or ValueError if there is not one for each, or
        one of them is of no known kind."""
        reading = read_scored if self.form == "verl" else read
        if not self.batched:
            return [reading(value)]
        values = value.tolist() if hasattr(value, "tolist") else value
        if not isinstance(values, Sequence) or isinstance(values, str):
            raise TypeError(f"returned {type(value).__name__}; expected a list with one entry for each of its answers")
        if len(values) != count:
            raise ValueError(f"returned {len(values)} entries for {count} answers")
        return [reading(one) for one in values]

    def _keep(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Those of the arguments that the function takes."""
        parameters = inspect.signature(self.function).parameters
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return arguments
        return {name: value for name, value in arguments.items() if name in parameters}

    def _columns(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """TRL's arguments: lists, prompts and completions as messages or as text."""
        lists = _lists([answer.fields() for answer in answers])
        lists["completion_ids"] = lists.pop("ids")
        if self.messages:
            lists["prompts"] = lists["messages"]
            lists["completions"] = [[{"role": "assistant", "content": a.response}] for a in answers]
        else:
            lists["prompts"] = [answer.prompt for answer in answers]
            lists["completions"] = [answer.response for answer in answers]
        return lists


def load(path: Path, name: str, sha256: str, settings: Settings) -> UserFunction:
    """The function `name` of a file. It is loaded as `python PATH` does it: its folder comes first among those from
    which it imports.

    Raises ConfigError if the file has changed since `sha256` was taken, has no such function, or takes parameters of no
    known form; and whatever the file itself raises.
    """
    source = path.read_bytes()
    if hashlib.sha256(source).hexdigest() != sha256:
        raise ConfigError(f"{path} has changed since the run began; put it back, or start the command again")
    spec = importlib.util.spec_from_file_location(f"espalier_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is no Python file; expected PATH.py:FUNCTION")
    sys.path.insert(0, str(path.parent))
    module = sys.modules.get(spec.name)
    if module is None:
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        raise ConfigError(f"{path} has no function {name}; it has {', '.join(names) or 'none'}")
    return recognised(function, source.decode("utf-8", "replace"), settings)


def recognised(function: Callable[..., Any], source: str, settings: Settings) -> UserFunction:
    """How a function is called, by its parameters.

    A function in TRL's form gets prompts and completions as messages if its file speaks of "content" anywhere, else as
    text; the setting `completions` (messages, text) decides otherwise. Raises ConfigError for parameters of no known
    form.
    """
    parameters = inspect.signature(function).parameters
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
    batched = bool(getattr(function, "batched", False))
    names = [name for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    given = str(settings.get("completions", ""))
    if "completions" in names or "prompts" in names:
        messages = given == "messages" if given else _speaks_of_content(source)
        view = "messages" if messages else "text"
        why = "as the setting says" if given else f'its file {"has" if messages else "does not have"} "content"'
        note = f"TRL's form, by its parameters ({', '.join(names)}); prompts and completions as {view}: {why}"
        return UserFunction(function, "trl", True, is_async, messages, note)
    if given:
        raise ConfigError("the setting completions is for functions in TRL's form, and this is none")
    if "solution_str" in names:
        note = f"verl's form, by its parameters ({', '.join(names)}); of a dict, score counts, other numbers are logged"
        return UserFunction(function, "verl", False, is_async, False, note)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if "response" in names or (open_ended and not names):
        note = f"one call for {'a list of answers' if batched else 'each answer'}{', async' if is_async else ''}"
        return UserFunction(function, "own", batched, is_async, False, note)
    raise ConfigError(f"its parameters are ({', '.join(parameters)}); expected {FORMS}")


def _speaks_of_content(source: str) -> bool:
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return False
    return any(isinstance(node, ast.Constant) and node.value == "content" for node in ast.walk(tree))


def _lists(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows as columns; None for what a row does not have."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _verl(answer: Answer) -> dict[str, Any]:
    """verl's arguments. `data_source` is the column of that name, else the verifier; `ground_truth` the answer, else
    the one in the column `reward_model`; `extra_info` the column of that name with everything else beside it."""
    fields = {**answer.fields(), "prompt": answer.prompt}
    extra = fields.pop("extra_info", None)
    model = fields.get("reward_model")
    truth: Any = answer.answer
    if not truth and isinstance(model, Mapping):
        truth = model.get("ground_truth", "")
    return {
        "data_source": fields.get("data_source") or answer.verifier,
        "solution_str": answer.response,
        "ground_truth": truth,
        "extra_info": {**fields, **extra} if isinstance(extra, Mapping) else fields,
    }
