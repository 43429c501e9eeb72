"""Scalar heads: a linear map of hidden states to numbers, read where an algorithm says, in place of the token head.

    score_RK = hidden_RD W_KD'          what is trained
    a score  = scale_K * score_RK + bias_K    what is said afterwards, see `Calibration`

A model with such a head stays the causal LM it was, without its token head, and is exported as the
sequence-classification class that transformers has for its architecture.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from espalier.errors import ConfigError, ModelError
from espalier.models.adapters import SCORE, plain_names

Kind = Literal["response", "steps"]
WEIGHT = f"{SCORE}.weight"
_NAMELESS = re.compile(r"LABEL_\d+")


@dataclass(frozen=True, slots=True)
class Calibration:
    """What makes scores comparable: y = scale * score + bias, a number of each for every dimension.

    Raises ValueError where they differ in length, are not finite, or a scale is not above 0 (it would turn the order).
    """

    bias: tuple[float, ...]
    scale: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.bias) != len(self.scale) or not all(math.isfinite(x) for x in (*self.bias, *self.scale)):
            raise ValueError(f"calibration: got {self}; expected as many finite biases as scales")
        if not all(x > 0 for x in self.scale):
            raise ValueError(f"calibration: got scales {self.scale}; expected numbers above 0")

    def apply(self, scores_RK: Tensor) -> Tensor:
        """scale * score + bias [R, K], in the dtype of the scores."""
        if scores_RK.shape[-1] != len(self.bias):
            raise ValueError(f"calibration has {len(self.bias)} dimensions, the scores {scores_RK.shape[-1]}")
        return scores_RK * scores_RK.new_tensor(self.scale) + scores_RK.new_tensor(self.bias)

    def then(self, after: Calibration) -> Calibration:
        """The calibration that applies this one and then `after`: scale s2 s1, bias s2 b1 + b2.

        >>> Calibration((1.0,), (2.0,)).then(Calibration((3.0,), (10.0,)))
        Calibration(bias=(13.0,), scale=(20.0,))
        """
        both = list(zip(self.bias, self.scale, after.bias, after.scale, strict=True))
        return Calibration(tuple(s2 * b1 + b2 for b1, _, b2, s2 in both), tuple(s2 * s1 for _, s1, _, s2 in both))


@dataclass(frozen=True, slots=True)
class ScalarHead:
    """What a model's head is: `names` of its dimensions (empty where they have none), `kind` says where it is read (at
    the last token of a response, or at the end of each step of one), and its calibration."""

    dimensions: int
    names: tuple[str, ...]
    kind: Kind
    calibration: Calibration


def identity(dimensions: int) -> Calibration:
    """The calibration that changes nothing."""
    return Calibration((0.0,) * dimensions, (1.0,) * dimensions)


def calibrate(scores_SK: Tensor, scale: bool) -> Calibration:
    """The calibration under which these scores have mean 0 and, with `scale`, standard deviation 1 in every dimension.

    The deviation is the one of the scores at hand (divided by S, not S - 1): 1, 2, 3, 6 have mean 3 and deviation
    sqrt(3.5), so scale = 0.5345 and bias = -1.6036; without `scale`, scale = 1 and bias = -3.

    Raises ValueError for no scores, scores that are not finite, and, with `scale`, scores that are all equal.
    """
    wide = scores_SK.double()
    if wide.dim() != 2 or not len(wide) or not wide.isfinite().all():
        raise ValueError(f"calibrate: got scores of shape {tuple(wide.shape)}; expected [S, K], S > 0, all finite")
    mean, spread = wide.mean(0), wide.std(0, correction=0)
    if scale and not (spread > 1e-12 * (1 + mean.abs())).all():
        raise ValueError(
            f"calibrate: {len(wide)} reference scores do not differ in some dimension (deviations {spread.tolist()}), "
            "so no scale makes their deviation 1; give other references, or leave the scale out"
        )
    factor = 1 / spread if scale else torch.ones_like(mean)
    return Calibration(tuple((-mean * factor).tolist()), tuple(factor.tolist()))


# -------------------------------------------------------------------------------------------------------- on the model


def scalar_head(model: Any) -> ScalarHead | None:
    """What `attach` or a reward model's files put on the model; None for a causal LM."""
    found: ScalarHead | None = getattr(model, "espalier_head", None)
    return found


def attach(model: Any, dimensions: int, *, seed: int, names: Sequence[str] = (), kind: Kind = "response") -> None:
    """Put a head of `dimensions` numbers on a causal LM in place of its token head, as `model.score`.

    W [K, D] is float32, drawn from N(0, 1 / (D + 1)) (standard deviation 1 / sqrt(D + 1); Stiennon et al. 2020,
    arXiv:2009.01325, appendix B.1) as a function of `seed`, and trained; with a LoRA adapter, too, whichever comes
    first. The token head leaves the model; an input embedding that it was tied to stays and is trained as before.
    Call it before `prepare`, so that frozen and counted parameters are the right ones.

    Raises ModelError where the model has a head already or could not be exported, see `check`; ConfigError for
    dimensions and names that do not fit.
    """
    if (had := scalar_head(model)) is not None:
        raise ModelError(f"{type(model).__name__} has a scalar head of {had.dimensions} dimensions already")
    if dimensions < 1 or (names and len(names) != dimensions) or len(set(names)) != len(names):
        raise ConfigError(
            f"a scalar head of {dimensions} dimensions got the names {list(names)}; expected one for each"
        )
    check(model)
    width = _score_of(_twin(model.config, 1)).in_features
    weight_KD = torch.randn(dimensions, width, generator=torch.Generator().manual_seed(seed)) / math.sqrt(width + 1)
    _put(model, weight_KD, ScalarHead(dimensions, tuple(names), kind, identity(dimensions)))


def restore(model: Any, weight_KD: Tensor, config: Any) -> None:
    """Put back the head that a sequence-classification directory holds: its weight, and what its config says of it.

    A directory of others has no calibration (the identity) and is read at the last token of a response.
    Raises ModelError where they do not fit each other.
    """
    count = len(weight_KD)
    bias = getattr(config, "espalier_reward_bias", None) or [0.0] * count
    labels = [str(config.id2label[i]) for i in range(config.num_labels)]
    names = () if any(_NAMELESS.fullmatch(label) for label in labels) else tuple(labels)
    kind: Any = getattr(config, "espalier_head", "response")
    check(model)
    width = _score_of(_twin(config, count)).in_features
    if weight_KD.shape != (config.num_labels, width) or len(bias) != count or kind not in ("response", "steps"):
        raise ModelError(
            f"{WEIGHT} is {tuple(weight_KD.shape)}, but config.json has num_labels {config.num_labels}, hidden size "
            f"{width}, espalier_reward_bias {bias}, espalier_head {kind!r}; expected [num_labels, hidden size], a bias "
            "for each label, and response or steps"
        )
    calibration = Calibration(tuple(float(x) for x in bias), (1.0,) * count)
    _put(model, weight_KD.float(), ScalarHead(count, names, kind, calibration))


def _put(model: Any, weight_KD: Tensor, head: ScalarHead) -> None:
    drop_token_head(model)
    score = ScoreLinear(weight_KD.shape[1], weight_KD.shape[0], bias=False, device="meta")
    device = model.get_input_embeddings().weight.device
    score.weight = nn.Parameter(weight_KD.to(device=device, dtype=torch.float32, copy=True))
    setattr(model, SCORE, score)
    model.espalier_head = head


def calibration_of(model: Any) -> Calibration:
    """How the model's raw scores become the ones it says. A scale that was exported is in the weight, and is 1 here.

    Raises ModelError for a model without a head.
    """
    return _required(model).calibration


def set_calibration(model: Any, calibration: Calibration) -> None:
    """Give the head of a model its calibration. Raises ModelError where their dimensions differ."""
    head = _required(model)
    if len(calibration.bias) != head.dimensions:
        raise ModelError(f"the head has {head.dimensions} dimensions, the calibration {len(calibration.bias)}")
    model.espalier_head = replace(head, calibration=calibration)


def recalibrate(model: Any, said_SK: Tensor, scale: bool) -> None:
    """Calibrate the model from what it says of reference responses, as calibrated so far: `calibrate` on top of that.

    Raises ModelError for a model without a head of K dimensions, ValueError as `calibrate`.
    """
    after = calibrate(said_SK, scale)
    if len(after.bias) != _required(model).dimensions:
        raise ModelError(f"the head has {_required(model).dimensions} dimensions, the scores {len(after.bias)}")
    set_calibration(model, calibration_of(model).then(after))


def read(model: Any, hidden_RD: Tensor) -> Tensor:
    """Raw scores [R, K] in float32 (float64 of float64 hidden states)."""
    scores_RK: Tensor = _score_of(model)(hidden_RD)
    return scores_RK


class ScoreLinear(nn.Linear):
    """A linear map without bias in float32 or wider, whatever the dtype of what it reads; FSDP2 shards it by itself."""

    def forward(self, hidden_RD: Tensor) -> Tensor:
        wide = torch.promote_types(hidden_RD.dtype, torch.float32)
        return nn.functional.linear(hidden_RD.to(wide), self.weight.to(wide))


def _required(model: Any) -> ScalarHead:
    if (head := scalar_head(model)) is None:
        raise ModelError(
            f"{type(model).__name__} has no scalar head; expected a reward model, as `espalier reward` trains it"
        )
    return head


def _score_of(model: Any) -> Any:
    return getattr(model, SCORE)


def token_head_names(model: Any) -> set[str]:
    """Names of the token head's parameters; empty once it has left the model."""
    head = model.get_output_embeddings()
    path = next((name for name, module in model.named_modules() if module is head), None) if head is not None else None
    return set() if path is None else {n for n in plain_names(model) if n.startswith(path + ".")}


def drop_token_head(model: Any) -> None:
    """Take the token head out of the model, and its tie with it; the table that it was tied to stays."""
    head = model.get_output_embeddings()
    if head is None:
        return
    path = next(name for name, module in model.named_modules() if module is head)
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, None)
    for ties in ("_tied_weights_keys", "all_tied_weights_keys"):  # else a resized embedding looks for the head
        known = getattr(model, ties, None) or {}
        setattr(model, ties, {name: source for name, source in known.items() if not name.startswith(path + ".")})


# ----------------------------------------------------------------------------------------------------- as transformers


def check(model: Any) -> None:
    """Raise ModelError, before anything is trained, where no sequence-classification class of transformers computes
    what this model with a scalar head computes: the same backbone under the same names, and one matrix `score`."""
    name, kind = type(model).__name__, model.config.model_type
    way_out = "Train another family, such as llama, qwen2, qwen3, mistral, gemma2 or gpt2"
    if _class_of(model.config) is None:
        raise ModelError(
            f"{name} (model_type {kind}) cannot be a reward model: transformers has no sequence-classification class "
            f"for it to be exported as. {way_out}"
        )
    twin = _twin(model.config, 1)
    theirs = {name: tuple(x.shape) for name, x in twin.state_dict().items()}
    score = getattr(twin, SCORE, None)
    head = token_head_names(model)
    ours = {n: shape for n, shape in plain_names(model).items() if n not in head and n != WEIGHT}
    if isinstance(score, nn.Linear) and len(list(score.parameters())) == 1:
        theirs.pop(WEIGHT)
    if odd := sorted(n for n in {*ours, *theirs} if ours.get(n) != theirs.get(n)):
        raise ModelError(
            f"{name} cannot be a reward model: {type(twin).__name__}, as which it would be exported, is not its "
            f"backbone and one matrix {SCORE} ({len(odd)} weights differ, such as {odd[0]}). {way_out}"
        )


def exported(model: Any, config: Any) -> Any:
    """The empty sequence-classification model that an export writes, on `config`, to which is added what the head is.

    num_labels, id2label (the dimensions' names), problem_type "regression", espalier_head and espalier_reward_bias:
    what transformers' `logits` plus this bias are is the model's score, because the scale is in the weight.
    """
    head = _required(model)
    config.num_labels = head.dimensions
    labels = head.names or tuple(f"LABEL_{i}" for i in range(head.dimensions))
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    config.problem_type = "regression"
    config.espalier_head = head.kind
    config.espalier_reward_bias = list(head.calibration.bias)
    return _twin(config, head.dimensions)


def folded(model: Any, weight_KD: Tensor) -> Tensor:
    """The weight with the scale in it, in float32: the head is small, and keeps its precision in any export."""
    scale = torch.tensor(_required(model).calibration.scale, dtype=torch.float64, device=weight_KD.device)
    return (weight_KD.double() * scale[:, None]).float()


def _class_of(config: Any) -> Any:
    known: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    return known.get(type(config), None)


def _twin(config: Any, dimensions: int) -> Any:
    own = copy.deepcopy(config)
    own._attn_implementation = "eager"
    if own.num_labels != dimensions:
        own.num_labels = dimensions
    with torch.device("meta"):
        return _class_of(config)(own)
