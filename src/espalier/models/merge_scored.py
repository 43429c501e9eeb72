"""An adapter of a reward model put into it: transformers' and peft's own classes merge, what they write is loaded.

The head that scores is the adapter's (`modules_to_save` of peft's SEQ_CLS) or, if it brings none, the base's.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from espalier.config.sections import ModelConfig
from espalier.errors import ModelError
from espalier.models.adapter_files import PREFIX, Adapter
from espalier.models.heads import WEIGHT
from espalier.models.json_files import read_model_config
from espalier.models.load import Loaded, load_model, load_tokenizer, locate, quiet, tokenizer_beside
from espalier.models.merge import TOLERANCE, on_base

_HEAD = (f"{PREFIX}{WEIGHT}", f"{PREFIX}score.modules_to_save.weight", f"{PREFIX}score.modules_to_save.default.weight")
_OTHER_HEADS = ("classifier", "v_head", "rm_head", "value_head")


def load_scored(config: ModelConfig, adapter: Adapter, device: str | torch.device = "cpu") -> Loaded:
    """`config.model` with a reward model's adapter merged into it.

    Raises ModelError if neither has a head that scores, if the head is another class's, if tokens were added, or if
    the merge does not score as base and adapter do together.
    """
    folder = locate(config.model)
    dimensions = _dimensions(config.model, folder, adapter)
    tokenizer: Any = tokenizer_beside(adapter.folder, trust_remote_code=config.trust_remote_code)
    tokenizer = tokenizer or load_tokenizer(str(folder), trust_remote_code=config.trust_remote_code)
    with tempfile.TemporaryDirectory() as place:
        apart = _merge(config, folder, adapter, dimensions, tokenizer, Path(place))
        plain = ModelConfig(model=place, trust_remote_code=config.trust_remote_code)
        loaded = load_model(plain, device=device, head=True)
    loaded.folder, loaded.adapter = folder, adapter.folder
    loaded.notes.append(
        f"merged adapter {adapter.path} ({adapter.kind}) into {config.model}: scores within {apart:.1e} of base and "
        "adapter"
    )
    return loaded


def _dimensions(base: str, folder: Path, adapter: Adapter) -> int:
    """How many numbers the head says: by the adapter's, else the base's own. Raises ModelError without one."""
    shapes = [shape for name, shape in adapter.shapes.items() if name in _HEAD]
    if shapes:
        return shapes[0][0]
    other = sorted({part for name in adapter.shapes for part in name.split(".") if part in _OTHER_HEADS})
    if other:
        raise ModelError(
            f"adapter {adapter.path} brings a head called {other[0]}; expected `score`, as the sequence-classification "
            "classes of transformers have it. Merge it with the code that trained it, and score the merged model"
        )
    settings = read_model_config(folder / "config.json")
    if any(str(name).endswith("ForSequenceClassification") for name in settings.get("architectures") or ()):
        return int(settings.get("num_labels") or len(settings.get("id2label") or (0, 0)))
    raise ModelError(
        f"neither adapter {adapter.path} nor {base} has a head that scores; expected `score` among the adapter's "
        "modules_to_save, or a reward model as the base"
    )


def _merge(config: ModelConfig, folder: Path, adapter: Adapter, dimensions: int, tokenizer: Any, place: Path) -> float:
    """Write the merged model into `place`; returns how far its scores are from those of base and adapter."""
    from transformers import AutoModelForSequenceClassification

    ids = torch.arange(48).reshape(1, -1) * 7919 % len(tokenizer)
    try:
        with quiet(), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            base: Any = AutoModelForSequenceClassification.from_pretrained(
                str(folder),
                num_labels=dimensions,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=config.trust_remote_code,
            )
            if len(tokenizer) > base.get_input_embeddings().weight.shape[0]:
                raise ModelError(f"its tokenizer has {len(tokenizer)} tokens, more than the base has rows")
            # Where the class reads follows from the pad token, which the adapter's own config does not hold.
            if base.config.get_text_config().pad_token_id is None:
                base.config.get_text_config().pad_token_id = tokenizer.pad_token_id
            model = on_base(base, adapter)
            before = model(input_ids=ids).logits
            merged: Any = model.merge_and_unload(safe_merge=True)
            apart = float((merged(input_ids=ids).logits - before).abs().max())
            merged.save_pretrained(str(place))
            tokenizer.save_pretrained(str(place))
    # peft and transformers raise anything.
    except Exception as error:
        reason = " ".join(str(error).split())[:240] or type(error).__name__
        named = f" (adapter_config.json names {adapter.named_base})" if adapter.named_base else ""
        raise ModelError(
            f"adapter {adapter.path} cannot be merged into {config.model}: {reason}. Pass the model it was trained "
            f"on{named}"
        ) from error
    # Not >, which is false for NaN, too.
    if not apart <= TOLERANCE:
        raise ModelError(f"adapter {adapter.path} cannot be merged: the merged model scores up to {apart:.3g} away")
    return apart
