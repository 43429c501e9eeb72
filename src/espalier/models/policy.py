"""The trained model as one module: a packed batch in, log-probabilities or the scores of a scalar head out.

Backbone and head run inside this module's `forward`, which is what FSDP2 needs: parameters of the root (embeddings, a
tied or untied head) are whole there and nowhere else.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from espalier.errors import ModelError
from espalier.models import heads
from espalier.models.attention import interface as attention
from espalier.models.attention.forest import Forest
from espalier.models.layout import Layout
from espalier.models.noise import KeyedDropout, Noise, neftune, replace_dropouts
from espalier.models.router import balance_loss
from espalier.models.score import Head, score
from espalier.types import Batch, Says

_NOISE = re.compile(r"dropout|pdrop|layerdrop|jitter")


class Policy(nn.Module):
    """A causal LM over packed batches.

    model: a transformers causal LM, adapters injected. layout: from `layout.choose`. neftune_alpha, dropout: noise
    keyed by the sample; nothing is shared while it is on. router_loss: also return the load-balancing loss. says: what
    the model is read for; `reads` needs a scalar head (`heads.attach`) in place of its token head, and reads it at the
    batch's `reads_R`.

    Raises ModelError where `dropout` is on and the architecture draws some of its noise itself: attention dropout in
    the layout padded, or dropouts that are no modules; and if the model does not have the head that `says` needs.
    """

    def __init__(
        self,
        model: Any,
        layout: Layout,
        *,
        neftune_alpha: float = 0.0,
        dropout: bool = False,
        router_loss: bool = False,
        says: Says = "tokens",
    ):
        super().__init__()
        has_scalar_head = heads.scalar_head(model) is not None
        if says == "reads" and not has_scalar_head:
            raise ModelError(f"says is reads, but {type(model).__name__} has no scalar head; expected one")
        if says == "tokens" and has_scalar_head:
            raise ModelError(f"says is tokens, but {type(model).__name__} has a scalar head; expected a token head")
        self.says = says
        self.model = model
        self.layout = layout
        self.neftune_alpha = neftune_alpha
        self.router_loss = router_loss
        self.dropout = dropout
        self.dropouts: list[KeyedDropout] = replace_dropouts(model) if dropout else []
        self.noisy = bool(neftune_alpha or dropout)
        config = model.config.get_text_config()
        if dropout and (own := _unkeyed(model, layout)):
            raise ModelError(
                f"{type(model).__name__} draws {', '.join(own)} by itself in the layout {layout}, so that noise cannot "
                "belong to samples; set it to 0 in the model's config.json, or dropout: false"
            )
        self.head = head_of(config)
        self._experts = getattr(config, "num_experts_per_tok", 0)
        if layout != "padded":
            attention.register()
            model.set_attn_implementation(attention.NAME)

    @property
    def backbone(self) -> Any:
        """What is under the head."""
        return backbone_of(self.model)

    @property
    def shares(self) -> bool:
        """Whether prefixes are laid down once."""
        return self.layout == "forest" and not self.noisy

    def forward(
        self,
        batch: Batch,
        *,
        entropy: bool = False,
        correct: bool = False,
        cotangent_U: Tensor | None = None,
        noise: Noise | None = None,
    ) -> dict[str, Tensor]:
        """Scores of the batch: `logprobs` [U] and, where asked for, `entropy` [U], `correct` [U] (1 where the target is
        the most probable token) and `router`, the load-balancing loss.

        Of a model with a scalar head: `scores_RK` [R, K] in float32 after the tokens in `reads_R`, uncalibrated, and
        `router`. Raises ValueError where it is asked for what only a token head says.
        """
        if self.says == "reads" and (entropy or correct or cotangent_U is not None):
            raise ValueError("a model with a scalar head has no entropy, correct or cotangent; ask for none of them")
        hidden_ND, router = self._hidden(batch, noise)
        if self.says == "reads":
            read = {"scores_RK": heads.read(self.model, hidden_ND[batch.reads_R])}
            return read if router is None else {**read, "router": router}
        weight, bias = head_weights(self.model.get_output_embeddings())
        tempered = any(s.temperature != 1 for s in batch.samples)
        scores = score(
            hidden_ND[batch.sources_U],
            weight.to(hidden_ND.dtype),
            bias,
            batch.targets_U,
            batch.temperatures_U if tempered else None,
            head=self.head,
            entropy=entropy,
            correct=correct,
            cotangent_U=cotangent_U,
        )
        if router is not None:
            scores["router"] = router
        return scores

    def _hidden(self, batch: Batch, noise: Noise | None) -> tuple[Tensor, Tensor | None]:
        backbone = backbone_of(self.model)
        options: dict[str, Any] = {"use_cache": False}
        if self.router_loss:
            options["output_router_logits"] = True
        flat = {"position_ids": batch.positions_N}
        for module in self.dropouts:
            module.current = noise
        if self.neftune_alpha and noise is not None:
            embeddings = self.model.get_input_embeddings()(batch.inputs_N)
            flat["inputs_embeds"] = neftune(embeddings, noise, self.neftune_alpha)
        else:
            flat["input_ids"] = batch.inputs_N
        if self.layout == "padded":
            lengths = [s.length for s in batch.segments]
            rows = {key: pad_sequence(list(torch.split(x, lengths)), batch_first=True) for key, x in flat.items()}
            out = backbone(**rows, **options)
            hidden = torch.cat([row[:n] for row, n in zip(out.last_hidden_state, lengths, strict=True)])
        else:
            rows = {key: x[None] for key, x in flat.items()}
            forest = Forest(batch.segments, batch.inputs_N.device, noise=noise if self.dropout else None)
            out = backbone(**rows, **options, forest=forest)
            hidden = out.last_hidden_state[0]
        router = None
        if self.router_loss:
            if batch.uses_N is None or self.layout == "padded":
                raise ValueError("the router loss got no uses_N; expected pack(count_uses=True) and a packed layout")
            router = balance_loss(out.router_logits, self._experts, batch.uses_N)
        return hidden, router


def _unkeyed(model: Any, layout: Layout) -> list[str]:
    """Noise that is on and that neither a KeyedDropout nor the forest's attention draws, with its strength."""
    found = {
        f"{name} {value:g}"
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, float) and value > 0 and _NOISE.search(name)
        if name != "attention_dropout" or layout == "padded"
    }
    inside = getattr(model.config.get_text_config(), "attn_pdrop", 0)
    return sorted(found | ({f"attn_pdrop {inside:g}"} if inside and layout == "padded" else set()))


def backbone_of(model: Any) -> Any:
    """What is under the head. Raises ModelError where the model names no such module."""
    for name in (model.base_model_prefix, "model"):  # some causal LMs carry the prefix of a larger, multimodal model
        if (found := getattr(model, name, None)) is not None:
            return found
    raise ModelError(
        f"{type(model).__name__} has no module {model.base_model_prefix}; expected a causal language model"
    )


def head_of(config: Any) -> Head:
    """Soft cap and scale of an architecture's logits, from its configuration.

    The start-up check compares the result with the model's own logits, so a head that does more is found there.
    """
    scale = 1.0
    if divisor := getattr(config, "logits_scaling", None):
        scale /= float(divisor)
    for name in ("logit_scale", "lm_head_multiplier"):
        scale *= float(getattr(config, name, None) or 1.0)
    caps = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
    return Head(softcap=next((cap for name in caps if (cap := getattr(config, name, None))), None), scale=scale)


def head_weights(module: Any) -> tuple[Tensor, Tensor | None]:
    """Weight [V, D] and bias of an output embedding, through which gradients flow also where peft wraps it."""
    if hasattr(module, "token_adapter"):  # peft's trainable token rows: the base weight with some rows replaced
        adapter = module.token_adapter
        return adapter.get_merged_weights(adapter.active_adapters), None
    if hasattr(module, "base_layer"):
        raise TypeError(
            f"the output embedding is wrapped by {type(module).__name__}, which this head does not read; "
            "leave lm_head out of lora_targets"
        )
    return module.weight, module.bias
