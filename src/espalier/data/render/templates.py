"""Chat templates: the built-in ones, a user's own file, and what a template is made of."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espalier.errors import ConfigError, ModelError, RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BUILT_IN: Mapping[str, tuple[str, ...]] = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "alpaca": (),
    "plain": (),
}
"""The control tokens each template writes; those that write none end a turn in the end-of-text token."""

# `<|im_end|>` and its like. U+FF5C is the fullwidth bar of some vocabularies. Control tokens of
# other shapes (`[INST]`, `</s>`) are not recognised: they look like text that a template may well
# write.
_MARKUP = re.compile("<[|\uff5c][^<>\\s|\uff5c]{1,60}[|\uff5c]>")
_OTHER = "Choose a template that names its own (chatml, llama3)"
REFUSED = "chat template refuses the conversation"


def apply_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Give `tokenizer` the chat template `name`: built in (chatml, llama3, alpaca, plain) or a Jinja file.

    It ends up in `tokenizer.chat_template`, and so in what is exported. A built-in one writes the begin-of-text token
    if the tokenizer itself puts one in front of text. An empty name keeps the tokenizer's own.

    Raises ConfigError if the name is neither, the file is not a Jinja template, or the template writes control tokens
    that the vocabulary lacks: those would be split into characters.
    """
    if not name:
        return
    if name in BUILT_IN:
        source = _built_in(name)
        if adds_bos(tokenizer):
            source = "{{- bos_token }}" + source
        if not BUILT_IN[name] and tokenizer.eos_token_id is None:
            raise ConfigError(
                f"template {name} ends a turn in the end-of-text token, but the tokenizer has none. {_OTHER}"
            )
    else:
        source = _file(name)
    vocabulary = tokenizer.get_vocab()
    lacking = [token for token in BUILT_IN.get(name, _control_tokens(source)) if token not in vocabulary]
    if lacking:
        raise ConfigError(
            f"template {name} writes {', '.join(lacking)}, which the tokenizer does not know and would split into "
            f"characters. Add them with --add-tokens {' '.join(map(repr, lacking))}, or take --template plain"
        )
    tokenizer.chat_template = source


def both(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """The tokenizer's template for conversations without tools, and the one for those with. Raises ModelError."""
    try:
        return tokenizer.get_chat_template(), tokenizer.get_chat_template(tools=[{}])
    except ValueError as e:  # several templates, none of them the default
        raise ModelError(
            f"the tokenizer's chat template cannot be used: {str(e).splitlines()[0]}. Give one with --template"
        ) from e


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer itself puts its begin-of-text token in front of a text."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a", add_special_tokens=True)["input_ids"][:1] == [bos]


@lru_cache
def _built_in(name: str) -> str:
    folder = resources.files("espalier.data.render") / "templates"
    return "".join((folder / f"{part}.jinja").read_text(encoding="utf-8") for part in ("_shared", name))


def _file(name: str) -> str:
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"template got {name!r}; expected {', '.join(BUILT_IN)} or the path of a Jinja file")
    try:
        source = path.read_text(encoding="utf-8")
        literals(source)
    except UnicodeDecodeError as e:
        raise ConfigError(f"template {name} is not a Jinja template in UTF-8: {e}") from e
    except ModelError as e:
        raise ConfigError(f"template {name}: {e}") from e
    return source


def markup_of(tokenizer: PreTrainedTokenizerBase, names: Sequence[str], template: str = "") -> frozenset[str]:
    """Those of `names` that answers may hold: all that a chat template does not write around turns (in a user turn,
    first in the header of an answer, or behind an answer). None of them, if the template cannot be asked.

    template: as for `apply_template`. Raises ConfigError and ModelError as that does.
    """
    if template in BUILT_IN:
        source = _built_in(template)
    elif template:
        source = _file(template)
    elif tokenizer.chat_template is None:
        return frozenset()
    else:
        source, _ = both(tokenizer)
    values = {**tokenizer.special_tokens_map, "tools": None, "documents": None, "strftime_now": lambda form: form}
    asked, answer = {"role": "user", "content": "Zqu"}, {"role": "assistant", "content": "Zqa"}
    try:
        question = write(source, {**values, "messages": [asked], "add_generation_prompt": False})
        prompt = write(source, {**values, "messages": [asked], "add_generation_prompt": True})
        whole = write(source, {**values, "messages": [asked, answer], "add_generation_prompt": False})
    except RowError:
        return frozenset()
    around = {name for name in names if name in question or name in whole.rpartition("Zqa")[2]}
    header = prompt.removeprefix(question)
    around |= {name for name in names if header.lstrip().startswith(name) or name in BUILT_IN.get(template, ())}
    return frozenset(names) - around


def _control_tokens(source: str) -> list[str]:
    """What looks like a control token in the text a template writes."""
    tokens: set[str] = set()
    for text in literals(source):
        tokens.update(_MARKUP.findall(text))
    return sorted(tokens)


# --------------------------------------------------------------------------------------------------------- rendering


def write(source: str, values: Mapping[str, Any]) -> str:
    """The text of the template `source` for `values`. Raises RowError if the template refuses them or fails, and
    ModelError if it cannot be read."""
    from jinja2 import TemplateError

    template = _compiled(source)
    try:
        return str(template.render(**values))
    except TemplateError as e:
        raise RowError(REFUSED, got=f"{e}"[:200]) from e
    # A template is a program that meets data of any shape, and can fail in any way that a program
    # can: a type mismatch, a division by 0, a range that is too long.
    except Exception as e:
        raise RowError(REFUSED, got=f"{type(e).__name__}: {e}"[:200]) from e


def _compiled(source: str) -> Any:
    """The template, ready to be rendered. Raises ModelError for a syntax or a filter that there is not."""
    # transformers' own environment, private as it is: its sandbox, its `tojson`, its `{% generation
    # %}`, so that a template writes here what it writes everywhere else. It keeps what it compiled.
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        return _compile_jinja_template(source)
    except ImportError:
        raise
    except Exception as e:  # a syntax error, or nesting that the parser cannot follow
        number = getattr(e, "lineno", None)
        line = f"line {number}: " if number else ""
        got = f"{line}{e}"[:200] or type(e).__name__
        raise ModelError(
            f"the chat template cannot be read: {got}. Give another one with --template (chatml, llama3, alpaca, plain "
            "or a Jinja file)"
        ) from e


def missing_prompt(tokenizer: PreTrainedTokenizerBase) -> str:
    """The header with which the tokenizer's chat template starts an assistant turn and that it does not write as a
    generation prompt; "" if it writes one, or needs none.

    Markup of content (`<think></think>`) is no header, nor is what has fewer than three visible characters.
    """
    question, answer = {"role": "user", "content": "Zqu"}, {"role": "assistant", "content": "Zqa"}
    source = tokenizer.get_chat_template()
    names = {**tokenizer.special_tokens_map, "tools": None, "documents": None, "strftime_now": lambda form: ""}
    try:
        plain = write(source, {**names, "messages": [question], "add_generation_prompt": False})
        prompt = write(source, {**names, "messages": [question], "add_generation_prompt": True})
        turn = write(source, {**names, "messages": [question, answer], "add_generation_prompt": False})
    except RowError:  # what it refuses, it will refuse in its own words
        return ""
    if prompt != plain or not turn.startswith(prompt) or "Zqa" not in turn:
        return ""
    header = turn[len(prompt) : turn.rindex("Zqa")]
    rest = header.replace("<think>", "").replace("</think>", "")
    for token in tokenizer.added_tokens_decoder.values():
        if not token.special:
            rest = rest.replace(token.content, "")
    return header if len(rest.strip()) > 2 else ""


def with_prompt(source: str, header: str) -> str:
    """A template that writes `header` as its generation prompt; without a header, the template itself."""
    if not header:
        return source
    return f"{source}{{% if add_generation_prompt %}}{{{{ {json.dumps(header)} }}}}{{% endif %}}"


def complete(tokenizer: PreTrainedTokenizerBase) -> str:
    """Give the tokenizer's chat template, and so what is exported, the generation prompt that it lacks. Returns a line
    for the user, "" if it lacks none."""
    if tokenizer.chat_template is None or not (header := missing_prompt(tokenizer)):
        return ""
    if isinstance(tokenizer.chat_template, dict):
        named = tokenizer.chat_template.items()
        tokenizer.chat_template = {name: with_prompt(source, header) for name, source in named}
    else:
        tokenizer.chat_template = with_prompt(tokenizer.chat_template, header)
    return (
        f"the chat template had no generation prompt: {header!r} is one now, in the exported template too, so that the "
        "model is asked as it is trained"
    )


@lru_cache(maxsize=8)
def literals(source: str) -> tuple[str, ...]:
    """Every constant string of a template and all text outside its tags. Raises ModelError if it cannot be read."""
    from jinja2 import nodes

    tree = _compiled(source).environment.parse(source)
    texts = {node.data for node in tree.find_all(nodes.TemplateData)}
    texts |= {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    return tuple(sorted(texts))


@lru_cache(maxsize=8)
def variables(source: str) -> frozenset[str]:
    """Names that a template expects from outside."""
    from jinja2 import meta

    return frozenset(meta.find_undeclared_variables(_compiled(source).environment.parse(source)))
