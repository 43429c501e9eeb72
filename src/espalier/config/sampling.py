"""How tokens are drawn: the keys that every command which draws answers has."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Gt, Le

from espalier.config.fields import Count, CountOrZero, Names, NotNegative, Number, Positive, Share, section


@section
class SamplingConfig:
    """How tokens are drawn."""

    max_tokens: Count = 256
    """Maximum length of an answer in tokens, its stop token included."""
    temperature: NotNegative = 1.0
    """Sampling temperature; 0 always takes the most probable token."""
    top_k: CountOrZero = 0
    """Draw among the k most probable tokens; 0 draws among all."""
    top_p: Annotated[Number, Gt(0), Le(1)] = 1.0
    """Draw among the fewest tokens that hold this probability."""
    min_p: Share = 0.0
    """Draw among tokens with at least this share of the most probable one's probability."""
    repetition_penalty: Positive = 1.0
    """Logits of tokens that are there already are divided by this if positive, multiplied if negative; 1 is off."""
    stop_strings: Names = ()
    """Texts that end an answer, besides the stop tokens."""
    sampler: Literal["auto", "local", "generate"] = "auto"
    """auto draws with the embedded sampler if the architecture allows it, else with transformers' generate."""
