"""From a model as it was loaded to the one that is trained: tokens, adapter, frozen parameters, dropouts."""

from __future__ import annotations

from collections.abc import Collection

from espalier.config.sections import ModelConfig
from espalier.errors import ConfigError
from espalier.models import heads
from espalier.models.adapter_files import read_adapter
from espalier.models.adapter_tokens import adopt, refuse_unnamed_rows
from espalier.models.adapters import add_adapter
from espalier.models.continued import check_continued
from espalier.models.dropouts import zero_dropouts
from espalier.models.freeze import FreezeSummary, freeze
from espalier.models.load import Loaded, tokenizer_beside
from espalier.models.tokens import add_control_tokens


def prepare(loaded: Loaded, config: ModelConfig, *, seed: int = 0, markup: Collection[str] = ()) -> FreezeSummary:
    """Apply what `config` asks of the trained model, in place and in the order that keeps it right.

    Control tokens (those in `markup` are not special, answers may hold them), the LoRA adapter (a function of `seed`),
    frozen parameters, dropouts. Lines for the user are added to `loaded.notes`.

    Raises ConfigError for a combination that cannot be trained.
    """
    if heads.scalar_head(loaded.model) is not None and config.export == "adapter":
        raise ConfigError(
            "export adapter leaves out the scalar head and its calibration; use export merged", key="export"
        )
    # Tokens before the adapter, which trains their rows; frozen last, when all names exist.
    adapter = read_adapter(config.adapter) if config.adapter else None
    if adapter is not None:
        check_continued(loaded.model, adapter, config.model)
        theirs = tokenizer_beside(adapter.folder, trust_remote_code=config.trust_remote_code)
        loaded.adapter = adapter.folder
        loaded.notes += adopt(loaded.model, loaded.tokenizer, adapter, theirs, template=not config.template)
    ids = add_control_tokens(loaded.model, loaded.tokenizer, config.add_tokens, markup)
    if ids:
        tokens = [f"{name} = {i}" for name, i in zip(config.add_tokens, ids, strict=True)]
        loaded.notes.append("control tokens: " + ", ".join(tokens))
    if adapter is not None:
        refuse_unnamed_rows(loaded.tokenizer, adapter)
    loaded.notes.extend(add_adapter(loaded.model, config, ids, seed=seed))
    # Once more, because an adapter that is continued may bring its own.
    if not config.dropout:
        zero_dropouts(loaded.model)
    summary = freeze(loaded.model, config)
    loaded.notes.extend(summary.notes)
    return summary
