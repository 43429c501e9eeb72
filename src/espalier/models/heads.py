"""Scalar heads: a linear map of hidden states to numbers, at positions that an algorithm names, instead of token heads.

    score_RK = hidden_RD W_KD'                      what is trained
    calibrated_RK = scale_K * score_RK + bias_K     what users are shown, see `Calibration`

A model with such a head stays the causal LM it was, without its token head, and is exported as the
sequence-classification class that transformers has for its architecture.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from espalier.errors import ConfigError, ModelError
from espalier.models.adapters import SCORE, plain_names

Kind = Literal["response", "steps"]
"""Where a head is read: at the last token of a response, or at the end of each step of one."""
WEIGHT = f"{SCORE}.weight"
# The labels that transformers gives to dimensions without names.
_NAMELESS = re.compile(r"LABEL_\d+")


@dataclass(frozen=True, slots=True)
class Calibration:
    """What makes scores comparable: y = scale * score + bias, a number of each for every dimension.

    Raises ValueError if they differ in length, are not finite, or a scale is not above 0 (it would reverse the order).
    """

    bias: tuple[float, ...]
    scale: tuple[float, ...]

    def __post_init__(self) -> None:
        finite = all(math.isfinite(number) for number in (*self.bias, *self.scale))
        if len(self.bias) != len(self.scale) or not finite:
            raise ValueError(f"calibration: got {self}; expected as many finite biases as scales")
        if min(self.scale, default=1.0) <= 0:
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
        biases, scales = [], []
        for b1, s1, b2, s2 in zip(self.bias, self.scale, after.bias, after.scale, strict=True):
            biases.append(s2 * b1 + b2)
            scales.append(s2 * s1)
        return Calibration(tuple(biases), tuple(scales))


@dataclass(frozen=True, slots=True)
class ScalarHead:
    """A model's head: the number of its dimensions, their names (none if they are nameless), where it is read, and its
    calibration."""

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
    # In float64: the mean of large scores would lose digits of their differences.
    wide = scores_SK.double()
    if wide.dim() != 2 or not len(wide) or not wide.isfinite().all():
        raise ValueError(f"calibrate: got scores of shape {tuple(wide.shape)}; expected [S, K], S > 0, all finite")
    mean, spread = wide.mean(0), wide.std(0, correction=0)
    if scale and not (spread > 1e-12 * (1 + mean.abs())).all():
        raise ValueError(
            f"calibrate: {len(wide)} reference scores do not differ in some dimension (deviations "
            f"{spread.tolist()}), so no scale makes their deviation 1; give other references, or "
            "leave the scale out"
        )
    factor = torch.ones_like(mean)
    if scale:
        factor = 1 / spread
    return Calibration(tuple((-mean * factor).tolist()), tuple(factor.tolist()))


# -------------------------------------------------------------------------------------------------------- on the model


def scalar_head(model: Any) -> ScalarHead | None:
    """The head that `attach` or a reward model's files put on the model; None for a causal LM."""
    head: ScalarHead | None = getattr(model, "espalier_head", None)
    return head


def attach(model: Any, dimensions: int, *, seed: int, names: Sequence[str] = (), kind: Kind = "response") -> None:
    """Put a head of `dimensions` numbers on a causal LM in place of its token head, as `model.score`.

    W [K, D] is float32, drawn from N(0, 1 / (D + 1)) (standard deviation 1 / sqrt(D + 1); Stiennon et al. 2020,
    arXiv:2009.01325, appendix B.1) as a function of `seed`, and trained, also beside a LoRA adapter, whichever of the
    two comes first. The token head leaves the model; an input embedding that it was tied to stays and is trained as
    before. Call it before `prepare`, so that frozen and counted parameters are the right ones.

    Raises ModelError if the model has a head already or could not be exported, see `check`; ConfigError for dimensions
    and names that do not fit.
    """
    existing = scalar_head(model)
    if existing is not None:
        raise ModelError(f"{type(model).__name__} has a scalar head of {existing.dimensions} dimensions already")
    if dimensions < 1 or (names and len(names) != dimensions) or len(set(names)) != len(names):
        raise ConfigError(
            f"a scalar head of {dimensions} dimensions got the names {list(names)}; expected a different one for each"
        )
    check(model)
    width = _score_of(_twin(model.config, 1)).in_features
    generator = torch.Generator().manual_seed(seed)
    weight_KD = torch.randn(dimensions, width, generator=generator) / math.sqrt(width + 1)
    _put(model, weight_KD, ScalarHead(dimensions, tuple(names), kind, identity(dimensions)))


def attach_value(model: Any, weight_D: Tensor | None = None, bias: float = 0.0) -> None:
    """Put a critic's head on a causal LM in place of its token head: V = weight . hidden + bias, float32. None is a
    weight of 0, so that all values are the bias. Only the weight is trained.

    A model that has a scalar head gets this one in its place. Call it before `prepare`.
    """
    score = getattr(model, SCORE, None)
    width = score.in_features if score is not None else _width(model)
    weight = torch.zeros(width) if weight_D is None else weight_D
    if weight.shape != (width,):
        raise ModelError(f"a value head got a weight of shape {tuple(weight.shape)}; expected [{width}]")
    _put(model, weight[None], ScalarHead(1, (), "response", Calibration((bias,), (1.0,))))


def as_value(model: Any, weights: Sequence[float]) -> tuple[Tensor, float]:
    """What a reward model's head comes to as a critic's: the weighted sum over dimensions of scale x its weight [D],
    and of its biases. Raises ModelError for a model without a head of as many dimensions."""
    head = _required(model)
    if len(weights) != head.dimensions:
        raise ModelError(f"the head has {head.dimensions} dimensions, got {len(weights)} weights for them")
    calibration = head.calibration
    factors = [w * scale for w, scale in zip(weights, calibration.scale, strict=True)]
    weight_KD = _score_of(model).weight.detach().double()
    weight_D = (weight_KD * weight_KD.new_tensor(factors)[:, None]).sum(0)
    return weight_D.float(), sum(w * b for w, b in zip(weights, calibration.bias, strict=True))


def value_head(model: Any) -> ScoreLinear:
    """A head that says 0, for values beside the model's token head; trained, float32, and no part of the model."""
    device = model.get_input_embeddings().weight.device
    head = ScoreLinear(_width(model), 1, bias=False, device=device, dtype=torch.float32)
    nn.init.zeros_(head.weight)
    return head


def _width(model: Any) -> int:
    """The width of the hidden states that the token head reads."""
    head = model.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(model).__name__} has no token head; expected a causal language model")
    return int(head.weight.shape[1])


def read_values(model: Any, hidden_UD: Tensor) -> Tensor:
    """Values [U] of a critic in float32 (float64 of float64 hidden states): its head's numbers plus its bias."""
    (bias,) = calibration_of(model).bias
    return read(model, hidden_UD)[:, 0] + bias


def restore(model: Any, weight_KD: Tensor, config: Any) -> None:
    """Put back the head that a sequence-classification directory holds: its weight, and the rest from its config.

    The head of a directory that Espalier did not write has no calibration (the identity) and is read at the last token
    of a response. Raises ModelError if weight and config do not fit each other.
    """
    count = len(weight_KD)
    bias = getattr(config, "espalier_reward_bias", None) or [0.0] * count
    names = labels_of(config)
    kind: Any = getattr(config, "espalier_head", "response")
    check(model)
    width = _score_of(_twin(config, count)).in_features
    fits = weight_KD.shape == (config.num_labels, width) and len(bias) == count
    if not fits or kind not in get_args(Kind):
        raise ModelError(
            f"{WEIGHT} is {tuple(weight_KD.shape)}, but config.json has num_labels "
            f"{config.num_labels}, hidden size {width}, espalier_reward_bias {bias}, espalier_head "
            f"{kind!r}; expected [num_labels, hidden size], a bias for each label, and response or "
            "steps"
        )
    # The scale was folded into the weight when the model was exported.
    calibration = Calibration(tuple(float(number) for number in bias), (1.0,) * count)
    _put(model, weight_KD.float(), ScalarHead(count, names, kind, calibration))


def labels_of(config: Any) -> tuple[str, ...]:
    """The names of the dimensions of a sequence-classification config; none if they are nameless."""
    labels = tuple(str(config.id2label[i]) for i in range(config.num_labels))
    return () if any(_NAMELESS.fullmatch(label) for label in labels) else labels


def _put(model: Any, weight_KD: Tensor, head: ScalarHead) -> None:
    """Put a head of this weight on the model in place of its token head."""
    drop_token_head(model)
    score = ScoreLinear(weight_KD.shape[1], weight_KD.shape[0], bias=False, device="meta")
    device = model.get_input_embeddings().weight.device
    score.weight = nn.Parameter(weight_KD.to(device=device, dtype=torch.float32, copy=True))
    setattr(model, SCORE, score)
    model.espalier_head = head


def calibration_of(model: Any) -> Calibration:
    """The calibration of the model's raw scores. A scale that was exported is in the weight, and is 1 here.

    Raises ModelError for a model without a head.
    """
    return _required(model).calibration


def set_calibration(model: Any, calibration: Calibration) -> None:
    """Give the head of a model its calibration. Raises ModelError if their dimensions differ."""
    head = _required(model)
    if len(calibration.bias) != head.dimensions:
        raise ModelError(f"the head has {head.dimensions} dimensions, the calibration {len(calibration.bias)}")
    model.espalier_head = replace(head, calibration=calibration)


def recalibrate(model: Any, calibrated_SK: Tensor, scale: bool) -> None:
    """Calibrate the model from its scores of reference responses, as calibrated so far: `calibrate` on top of that.

    Raises ModelError for a model without a head of K dimensions, ValueError as `calibrate`.
    """
    after = calibrate(calibrated_SK, scale)
    dimensions = _required(model).dimensions
    if len(after.bias) != dimensions:
        raise ModelError(f"the head has {dimensions} dimensions, the scores {len(after.bias)}")
    set_calibration(model, calibration_of(model).then(after))


def read(model: Any, hidden_RD: Tensor) -> Tensor:
    """Raw scores [R, K] in float32 (float64 of float64 hidden states)."""
    scores_RK: Tensor = _score_of(model)(hidden_RD)
    return scores_RK


class ScoreLinear(nn.Linear):
    """A linear map without bias in float32 or wider, whatever the dtype of its input; FSDP2 shards it by itself."""

    def forward(self, hidden_RD: Tensor) -> Tensor:
        """[R, D] to [R, K]."""
        wide = torch.promote_types(hidden_RD.dtype, torch.float32)
        return nn.functional.linear(hidden_RD.to(wide), self.weight.to(wide))


def _required(model: Any) -> ScalarHead:
    head = scalar_head(model)
    if head is None:
        raise ModelError(
            f"{type(model).__name__} has no scalar head; expected a reward model, as `espalier reward` trains it"
        )
    return head


def _score_of(model: Any) -> Any:
    return getattr(model, SCORE)


def token_head_names(model: Any) -> set[str]:
    """Names of the token head's parameters; empty once it has left the model."""
    path = _token_head_path(model)
    if path is None:
        return set()
    return {name for name in plain_names(model) if name.startswith(path + ".")}


def drop_token_head(model: Any) -> None:
    """Take the token head out of the model, and its tie with it; the table that it was tied to stays."""
    path = _token_head_path(model)
    if path is None:
        return
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, None)
    # Otherwise a resized embedding looks for the head that is tied to it.
    for attribute in ("_tied_weights_keys", "all_tied_weights_keys"):
        ties = getattr(model, attribute, None) or {}
        rest = {name: source for name, source in ties.items() if not name.startswith(path + ".")}
        setattr(model, attribute, rest)


def _token_head_path(model: Any) -> str | None:
    """The token head's name in the model; None once it has left."""
    head = model.get_output_embeddings()
    if head is None:
        return None
    for name, module in model.named_modules():
        if module is head:
            return str(name)
    return None


# ----------------------------------------------------------------------------------------------------- as transformers


def check(model: Any) -> None:
    """Raise ModelError if no sequence-classification class of transformers computes what this model computes with a
    scalar head: the same backbone under the same names, and one matrix `score`. Called before anything is trained."""
    name, kind = type(model).__name__, model.config.model_type
    way_out = "Train another family, such as llama, qwen2, qwen3, mistral, gemma2 or gpt2"
    if _class_of(model.config) is None:
        raise ModelError(
            f"{name} (model_type {kind}) cannot be a reward model: transformers has no "
            f"sequence-classification class for it to be exported as. {way_out}"
        )
    # Names and shapes of the weights tell: a class that computes more has weights for it.
    twin = _twin(model.config, 1)
    theirs = {weight: tuple(tensor.shape) for weight, tensor in twin.state_dict().items()}
    score = getattr(twin, SCORE, None)
    if isinstance(score, nn.Linear) and len(list(score.parameters())) == 1:
        theirs.pop(WEIGHT)
    ours = plain_names(model)
    for weight in (*token_head_names(model), WEIGHT):
        ours.pop(weight, None)
    odd = sorted(weight for weight in {*ours, *theirs} if ours.get(weight) != theirs.get(weight))
    if odd:
        raise ModelError(
            f"{name} cannot be a reward model: {type(twin).__name__}, as which it would be "
            f"exported, is not its backbone and one matrix {SCORE} ({len(odd)} weights differ, "
            f"such as {odd[0]}). {way_out}"
        )


def exported(model: Any, config: Any) -> Any:
    """The empty sequence-classification model that an export writes. The head's properties are added to `config`:

    num_labels, id2label (the dimensions' names), problem_type "regression", espalier_head and espalier_reward_bias.
    transformers' `logits` plus this bias are the model's calibrated scores, because the scale is in the weight.
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


def class_name(model: Any) -> str:
    """The class that the model is exported as."""
    return str(_class_of(model.config).__name__)


def folded(model: Any, weight_KD: Tensor) -> Tensor:
    """The weight with the scale in it, in float32: the head is small, and keeps its precision in any export."""
    scale = torch.tensor(_required(model).calibration.scale, dtype=torch.float64, device=weight_KD.device)
    return (weight_KD.double() * scale[:, None]).float()


def _class_of(config: Any) -> Any:
    known: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    return known.get(type(config), None)


def _twin(config: Any, dimensions: int) -> Any:
    """The architecture's sequence-classification model without memory: names and shapes, no numbers."""
    own = copy.deepcopy(config)
    # The one attention function that every class takes; config.json does not hold this choice.
    own._attn_implementation = "eager"
    own.num_labels = dimensions
    with torch.device("meta"):
        return _class_of(config)(own)
