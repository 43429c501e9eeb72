"""The trained model as one module: a packed batch in, log-probabilities or the scores of a scalar head out.

Backbone and head run inside this module's `forward`, which is what FSDP2 needs: parameters of the root (embeddings, a
tied or untied head) are whole there and nowhere else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from espalier.errors import ModelError
from espalier.models import heads
from espalier.models.attention.forest import Forest
from espalier.models.attention.interface import use_forest
from espalier.models.dropouts import NOISE_NAMES
from espalier.models.layout import Layout
from espalier.models.noise import KeyedDropout, Noise, neftune, replace_dropouts
from espalier.models.router import balance_loss
from espalier.models.token_head import head_weights, score_tokens, token_head_of
from espalier.types import Batch, Says


class Policy(nn.Module):
    """A causal LM over packed batches.

    model: a transformers causal LM, adapters injected. layout: from `layout.choose`. neftune_alpha, dropout: noise
    keyed by the sample; nothing is shared while it is on. router_loss: also return the load-balancing loss. says: what
    the model is read for; `reads` and `values` need a scalar head (`heads.attach`) in place of its token head, and read
    it at the batch's `reads_R`, or before each score. value_head: also read values before each score, by a new head
    that starts at 0, beside the token head.

    Raises ModelError if `dropout` is on and the architecture draws some of its noise itself: attention dropout in the
    layout padded, or dropouts that are not modules; and if the model does not have the head that `says` needs.
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
        value_head: bool = False,
    ):
        super().__init__()
        has_scalar_head = heads.scalar_head(model) is not None
        if says != "tokens" and not has_scalar_head:
            raise ModelError(f"says is {says}, but {type(model).__name__} has no scalar head; expected one")
        if says == "tokens" and has_scalar_head:
            raise ModelError(f"says is tokens, but {type(model).__name__} has a scalar head; expected a token head")
        self.says = says
        self.model = model
        self.value_head = heads.value_head(model) if value_head else None
        self.layout = layout
        self.neftune_alpha = neftune_alpha
        self.router_loss = router_loss
        self.dropout = dropout
        self.dropouts: list[KeyedDropout] = []
        if dropout:
            self.dropouts = replace_dropouts(model)
            _refuse_unkeyed(model, layout)
        self.noisy = bool(neftune_alpha or dropout)
        config = model.config.get_text_config()
        self.head = token_head_of(config)
        self._experts = getattr(config, "num_experts_per_tok", 0)
        if layout != "padded":
            use_forest(model)

    @property
    def backbone(self) -> Any:
        """The model without its head."""
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
        entropy_grad: bool = True,
        correct: bool = False,
        cotangent_U: Tensor | None = None,
        noise: Noise | None = None,
    ) -> dict[str, Tensor]:
        """Scores of the batch: `logprobs` [U] and, if asked for, `entropy` [U] (without a gradient unless
        `entropy_grad`), `correct` [U] (1 if the target is the most probable token, else 0), `values` [U]
        before the targets, if there is a value head beside the token head, and `router`, the load-balancing loss.

        Of a model with a scalar head: `scores_RK` [R, K] in float32 after the tokens in `reads_R`, uncalibrated, or
        `values` [U] before the targets; and `router`. Raises ValueError if it is asked for an output that only a token
        head has.
        """
        if self.says != "tokens" and (entropy or correct or cotangent_U is not None):
            raise ValueError("a model with a scalar head has no entropy, correct or cotangent; ask for none of them")
        hidden_ND, router = self._hidden(batch, noise)
        if self.says != "tokens":
            if self.says == "reads":
                outputs = {"scores_RK": heads.read(self.model, hidden_ND[batch.reads_R])}
            else:
                # No view: FSDP2 hooks onto what leaves this module.
                outputs = {"values": heads.read_values(self.model, hidden_ND[batch.sources_U]).clone()}
            if router is not None:
                outputs["router"] = router
            return outputs
        weight, bias = head_weights(self.model.get_output_embeddings())
        # Temperatures cost a pass over every chunk's logits, so none are passed if all are 1.
        tempered = any(s.temperature != 1 for s in batch.samples)
        outputs = score_tokens(
            hidden_ND[batch.sources_U],
            weight.to(hidden_ND.dtype),
            bias,
            batch.targets_U,
            batch.temperatures_U if tempered else None,
            head=self.head,
            entropy=entropy,
            entropy_grad=entropy_grad,
            correct=correct,
            cotangent_U=cotangent_U,
        )
        if self.value_head is not None:
            outputs["values"] = self.value_head(hidden_ND[batch.sources_U])[:, 0].clone()
        if router is not None:
            outputs["router"] = router
        return outputs

    def _hidden(self, batch: Batch, noise: Noise | None) -> tuple[Tensor, Tensor | None]:
        """Hidden states [N, D] of the packed tokens and, if asked for, the load-balancing loss."""
        backbone = self.backbone
        options: dict[str, Any] = {"use_cache": False}
        if self.router_loss:
            options["output_router_logits"] = True
        for module in self.dropouts:
            module.current = noise
        flat = self._inputs(batch, noise)
        if self.layout == "padded":
            lengths = [segment.length for segment in batch.segments]
            rows = {}
            for name, tokens in flat.items():
                rows[name] = pad_sequence(list(torch.split(tokens, lengths)), batch_first=True)
            # No mask: padding stands on the right, and causal mixers bring nothing to the left.
            out = backbone(**rows, **options)
            hidden = torch.cat([row[:n] for row, n in zip(out.last_hidden_state, lengths, strict=True)])
        else:
            rows = {name: tokens[None] for name, tokens in flat.items()}
            forest = Forest(batch.segments, batch.inputs_N.device, noise=noise if self.dropout else None)
            out = backbone(**rows, **options, forest=forest)
            hidden = out.last_hidden_state[0]
        if not self.router_loss:
            return hidden, None
        # In the layout padded, the router's logits are about padding too.
        if batch.uses_N is None or self.layout == "padded":
            raise ValueError("the router loss got no uses_N; expected pack(count_uses=True) and a packed layout")
        return hidden, balance_loss(out.router_logits, self._experts, batch.uses_N)

    def _inputs(self, batch: Batch, noise: Noise | None) -> dict[str, Tensor]:
        """Arguments of the backbone with an entry for each packed token: ids, or embeddings with NEFTune's noise."""
        flat = {"position_ids": batch.positions_N}
        if self.neftune_alpha and noise is not None:
            embeddings = self.model.get_input_embeddings()(batch.inputs_N)
            flat["inputs_embeds"] = neftune(embeddings, noise, self.neftune_alpha)
        else:
            flat["input_ids"] = batch.inputs_N
        return flat


def _refuse_unkeyed(model: Any, layout: Layout) -> None:
    """Raise ModelError for noise that is on and that neither a KeyedDropout nor the forest's attention draws."""
    strengths: set[str] = set()
    for module in model.modules():
        for name, value in vars(module).items():
            keyed = name == "attention_dropout" and layout != "padded"
            if isinstance(value, float) and value > 0 and NOISE_NAMES.search(name) and not keyed:
                strengths.add(f"{name} {value:g}")
    # GPT-2 passes a module's `attn_dropout.p` to its attention, and no attribute's name tells.
    inside = getattr(model.config.get_text_config(), "attn_pdrop", 0)
    if inside and layout == "padded":
        strengths.add(f"attn_pdrop {inside:g}")
    if strengths:
        raise ModelError(
            f"{type(model).__name__} draws {', '.join(sorted(strengths))} by itself in the layout "
            f"{layout}, so that noise cannot belong to samples; set it to 0 in the model's "
            "config.json, or dropout: false"
        )


def backbone_of(model: Any) -> Any:
    """The model without its head. Raises ModelError if the model names no such module."""
    # Some causal LMs have the prefix of a larger, multimodal model; their backbone is `model`.
    for name in (model.base_model_prefix, "model"):
        backbone = getattr(model, name, None)
        if backbone is not None:
            return backbone
    raise ModelError(
        f"{type(model).__name__} has no module {model.base_model_prefix}; expected a causal language model"
    )
