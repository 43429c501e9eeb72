"""An exported model as a user has it: loaded by transformers, and peft, alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espalier.assembly.machine import free_memory

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from espalier.assembly.session import Session
    from espalier.types import Sample

SPARE = 1.3
"""Memory that a second copy may take, as a share of its weights: activations of short rows, and what loading holds."""


class Unloadable(Exception):
    """transformers does not load a folder, or not whole."""


@dataclass(slots=True)
class Exported:
    """A model and a tokenizer out of a folder, in float32. stored: the dtype of its files. reads: whether it is read by
    a scalar head, at each step of a solution if `steps`. stop_ids: None if the folder has none of its own."""

    model: Any
    tokenizer: Any
    stored: torch.dtype
    reads: bool
    steps: bool
    stop_ids: set[int] | None

    @classmethod
    def load(cls, session: Session, folder: Path) -> Exported:
        """Raises Unloadable."""
        import torch

        reads, adapter = session.traits.says == "reads", (folder / "adapter_config.json").is_file()
        trust = session.config.model.trust_remote_code
        try:
            with _quiet():
                model = _adapted(folder, trust) if adapter else _whole(folder, reads, trust)
                tokenizer = _tokenizer(folder, session.model.loaded.tokenizer, trust)
        # What a broken folder raises is transformers', safetensors' or peft's affair.
        except Unloadable:
            raise
        except Exception as error:
            raise Unloadable(" ".join(f"{type(error).__name__}: {error}".split())[:300]) from error
        device = _device(session)
        stored = torch.float32 if adapter else session.model.loaded.source_dtype
        steps = session.traits.consumes == "steps"
        return cls(
            model.eval().to(device), tokenizer, stored, reads, steps, None if reads or adapter else _stops(folder)
        )

    @property
    def summary(self) -> str:
        """What was the same, in words."""
        stops = "" if self.stop_ids is None else f"; stops at {', '.join(map(str, sorted(self.stop_ids)))}"
        return f"loaded by transformers alone as {type(self.model).__name__}{stops}"

    def numbers(self, samples: Sequence[Sample]) -> Tensor:
        """Log-probabilities of trained tokens, or scores with their bias, of every sample, one after the other."""
        import torch

        with torch.no_grad():
            parts = [self._scores(s) if self.reads else self._logprobs(s) for s in samples]
        return torch.cat(parts).double().cpu()

    def spread(self, samples: Sequence[Sample], exact: Tensor) -> float:
        """How far the same weights in the dtype they are stored in are from `exact`, their numbers in float32. The
        model stays in that dtype."""
        self.model.to(self.stored)
        apart = (self.numbers(samples) - exact).abs()
        self.model.float()
        return float(apart.max()) if len(apart) and apart.isfinite().all() else 0.0

    def encode(self, text: str) -> list[int]:
        """The ids of a text that the chat template wrote, behind the begin-of-text token that the tokenizer puts."""
        tokenizer = self.tokenizer
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        whole = tokenizer(text)["input_ids"]
        if tokenizer.bos_token_id is not None and whole[:1] == [tokenizer.bos_token_id] != ids[:1]:
            return [tokenizer.bos_token_id, *ids]
        return ids

    def logits(self, ids: Sequence[int]) -> Tensor:
        """The class's own score of some ids, with its bias."""
        import torch

        with torch.no_grad():
            logits: Tensor = self.model(input_ids=self._tensor(ids)).logits[0].double().cpu()
        return logits + torch.tensor(self.model.config.espalier_reward_bias, dtype=torch.float64)

    def _tensor(self, ids: Sequence[int]) -> Tensor:
        import torch

        return torch.tensor([list(ids)], device=self.model.device)

    def _logprobs(self, s: Sample) -> Tensor:
        ids = self._tensor(s.tokens)
        logits = self.model(input_ids=ids, use_cache=False).logits[0, :-1].float() / s.temperature
        logprobs: Tensor = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        return logprobs[[i for i, trained in enumerate(s.mask[1:]) if trained]]

    def _scores(self, s: Sample) -> Tensor:
        """As the class reads them; of a process reward model, from the hidden states at the end of each step."""
        import torch

        if not self.steps:
            # Without a stop token that the template does not write: the text that the class is given ends there.
            return self.logits(s.tokens[: s.reads[0] + 1])
        backbone = getattr(self.model, self.model.base_model_prefix)
        hidden = backbone(input_ids=self._tensor(s.tokens), use_cache=False).last_hidden_state[0]
        scores: Tensor = self.model.score(hidden[s.reads]).double().cpu()
        return (scores + torch.tensor(self.model.config.espalier_reward_bias, dtype=torch.float64)).flatten()


def _whole(folder: Path, reads: bool, trust: bool) -> Any:
    """A model with all its weights. Raises Unloadable if some are not in the folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto: Any = AutoModelForSequenceClassification if reads else AutoModelForCausalLM
    model, info = auto.from_pretrained(
        str(folder), dtype=torch.float32, use_safetensors=True, trust_remote_code=trust, output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            names = sorted(map(str, info[kind]))
            raise Unloadable(f"{len(names)} {kind.replace('_', ' ')}, such as {names[0]}")
    return model


def _adapted(folder: Path, trust: bool) -> Any:
    """The base that an adapter names, with as many rows as the adapter's README says, and the adapter on it by peft."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    base: Any = AutoModelForCausalLM.from_pretrained(
        settings["base_model_name_or_path"], dtype=torch.float32, use_safetensors=True, trust_remote_code=trust
    )
    size = len(AutoTokenizer.from_pretrained(str(folder)))
    if size > base.get_input_embeddings().weight.shape[0]:
        base.resize_token_embeddings(size)
    return PeftModel.from_pretrained(base, str(folder))


def _tokenizer(folder: Path, live: Any, trust: bool) -> Any:
    """The folder's tokenizer by AutoTokenizer, or, if the run reads tokenizer.json as it stands and AutoTokenizer does
    not, by the class that does; the run said so."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust)
    if type(live) is PreTrainedTokenizerFast and type(tokenizer) is not PreTrainedTokenizerFast:
        return PreTrainedTokenizerFast.from_pretrained(str(folder))
    return tokenizer


def _stops(folder: Path) -> set[int]:
    """The stop ids of a generation."""
    from transformers import GenerationConfig

    ids = GenerationConfig.from_pretrained(str(folder)).eos_token_id
    if ids is None:
        return set()
    return set(ids) if isinstance(ids, list) else {ids}


def _quiet() -> Any:
    from espalier.models.load import quiet

    return quiet()


# -------------------------------------------------------------------------------------------------------------- memory


def room_for(session: Session) -> str:
    """Why a second copy of the model in float32 is not loaded; empty if there is room for it."""
    need = SPARE * _bytes(session)
    free = free_memory()
    if _on_cuda(session, need) or need <= free:
        return ""
    return f"a second copy needs {need / 2**30:.1f} GiB, and {free / 2**30:.1f} are free"


def _bytes(session: Session) -> int:
    """The weights in float32."""
    model: Any = session.learner.policy.model
    return 4 * sum(int(parameter.numel()) for parameter in model.parameters())


def _on_cuda(session: Session, need: float) -> bool:
    import torch

    return session.device.type == "cuda" and torch.cuda.mem_get_info()[0] >= need


def _device(session: Session) -> Any:
    return session.device if _on_cuda(session, SPARE * _bytes(session)) else "cpu"
