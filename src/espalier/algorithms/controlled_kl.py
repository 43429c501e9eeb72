"""Algorithms whose KL to the reference is controlled from step to step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from espalier.algorithms.onpolicy import OnPolicy
from espalier.config.fields import NotNegative, Positive, section
from espalier.credit import kl_control, shaping
from espalier.types import Sample

PATIENCE = 20
"""Steps in a row below a band after which that is said."""


@section
class ControlledKL(OnPolicy):
    """The strength of the KL is a moving number: `state["beta"]` is that of the step, `state["beta_next"]` the next."""

    kl_control: Literal["fixed", "adaptive"] = "fixed"
    """beta stays as it is, or follows kl_target."""
    kl_target: Positive = 6.0
    """KL that adaptive aims at, nats an answer."""
    kl_horizon: Positive = 10_000
    """Answers over which adaptive changes beta; fewer change it faster."""
    kl_band: Literal["off", "warn", "adapt", "stop"] = "off"
    """What to do when the KL leaves the band: say so; multiply or divide beta by 1.5; end the run above it."""
    kl_low: NotNegative = 0.01
    """Lower end of the band, nats a token."""
    kl_high: Positive = 0.05
    """Upper end of the band, nats a token."""

    @property
    def controls(self) -> bool:
        """Whether something depends on the KL that is measured."""
        return self.kl_control == "adaptive" or self.kl_band != "off"

    def strength(self, state: Mapping[str, float]) -> float:
        """beta of the step that `credit` is called for; the config's, also of a resumed run, if nothing moves it."""
        moves = self.kl_control == "adaptive" or self.kl_band == "adapt"
        return state.get("beta_next", self.beta) if moves else self.beta

    def control(self, state: Mapping[str, float], groups: Sequence[list[Sample]]) -> dict[str, float]:
        """The moving numbers after a step with these answers: `beta`, `beta_next`, the KL as `kl_answer` (nats an
        answer) and `kl_token`, and for how many steps in a row it was outside the band; none without a KL."""
        samples = [s for group in groups for s in group]
        beta = self.strength(state)
        if not self.beta or not samples or "old_logprobs" not in samples[0].streams:
            return {"beta": beta} if self.beta else {}
        of_answer, of_token = kl_control.of_answers([shaping.log_ratios(s) for s in samples])
        after = beta
        if self.kl_control == "adaptive":
            after = kl_control.adapted(beta, of_answer, self.kl_target, len(samples), self.kl_horizon)
        elif self.kl_band == "adapt":
            after = kl_control.banded(beta, of_token, self.kl_low, self.kl_high)
        above, below = of_token > self.kl_high, of_token < self.kl_low
        return {
            "beta": beta,
            "beta_next": after,
            "kl_answer": of_answer,
            "kl_token": of_token,
            "kl_above": kl_control.streak(state.get("kl_above", 0.0), above),
            "kl_below": kl_control.streak(state.get("kl_below", 0.0), below),
        }

    def remarks(self, state: Mapping[str, float]) -> list[str]:
        """A line when the KL leaves the band upwards, and when it has been below for 20 steps."""
        if self.kl_band in ("off", "adapt"):
            return []
        kl, band = state.get("kl_token", 0.0), f"the band {self.kl_low:g} to {self.kl_high:g}"
        if state.get("kl_above") == 1:
            return [f"KL to the reference is {kl:.3f} nats a token, above {band}; a larger beta holds it back"]
        if state.get("kl_below") == PATIENCE:
            return [f"KL to the reference has been below {band} for {PATIENCE} steps; a smaller beta lets it learn"]
        return []

    def ends(self, state: Mapping[str, float]) -> str:
        """Of kl_band stop: the KL is above the band."""
        if self.kl_band != "stop" or not state.get("kl_above"):
            return ""
        return f"KL to the reference is {state['kl_token']:.3f} nats a token, above kl_high {self.kl_high:g}"
