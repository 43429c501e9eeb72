"""Names that a user gives to a chat template, such as `enable_thinking=false`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

from espalier.config.fields import Names
from espalier.errors import ConfigError

RESERVED = ("messages", "tools", "documents", "add_generation_prompt", "strftime_now")
"""Names that the rendering itself gives."""


def _as_texts(value: Any) -> Any:
    """A mapping, as YAML may have it, as a list of NAME=VALUE."""
    if not isinstance(value, Mapping):
        return value
    import yaml

    texts = []
    for name, item in value.items():
        text = yaml.safe_dump(item, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")
        texts.append(f"{name}={text}")
    return tuple(texts)


TemplateArgs = Annotated[Names, BeforeValidator(_as_texts)]
"""A list of NAME=VALUE; a mapping stands for one."""


def template_values(texts: Iterable[str], key: str = "template_args") -> dict[str, Any]:
    """The values by name, each read as a YAML scalar.

    >>> template_values(["enable_thinking=false", "effort=high", "budget=12"])
    {'enable_thinking': False, 'effort': 'high', 'budget': 12}

    Raises ConfigError for a text without a name and a value, a name given twice, one that is no identifier, and one
    that the rendering itself gives.
    """
    import yaml

    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier() or name in values:
            form = name if name.isidentifier() else "NAME"
            raise ConfigError(f"{key}: got {text!r}, expected {form} once, as {form}=VALUE", key=key)
        if name in RESERVED:
            raise ConfigError(f"{key}: got {name}, which the rendering itself gives to the template; drop it", key=key)
        try:
            values[name] = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError) as error:
            got = str(error).splitlines()[0]
            raise ConfigError(f"{key}: got {text!r}, expected a YAML value behind {name}= ({got})", key=key) from None
    return values
