"""Settings of algorithms over rollouts that cannot be had together: each is refused with the way out."""

from __future__ import annotations

from typing import Any

from espalier.config.fields import infos
from espalier.errors import ConfigError


def changed(algorithm: Any, *names: str) -> list[str]:
    """Those of the fields `names` that are not at their defaults."""
    known = infos(type(algorithm))
    return [name for name in names if getattr(algorithm, name) != known[name].default]


def check_on_policy(algorithm: Any) -> None:
    """Of `onpolicy.OnPolicy`: raise ConfigError if a setting changes nothing beside the others, or has no meaning
    there."""
    kl = changed(algorithm, "kl_in", "kl", "kl_gradient", "sync_every")
    if kl and not algorithm.beta:
        raise ConfigError(f"{kl[0]} is given, but beta is 0, so there is no KL; give beta, or drop {kl[0]}", key=kl[0])
    of_loss = changed(algorithm, "kl_gradient")
    if of_loss and algorithm.kl_in == "reward":
        raise ConfigError("kl_gradient is about the KL in the loss, and kl_in is reward; drop one", key="kl_gradient")
    if algorithm.kl == "k2" and algorithm.kl_gradient == "token" and algorithm.kl_in == "loss":
        raise ConfigError(
            "kl k2 with kl_gradient token: the mean of ratio times k2 is not the KL; give kl_gradient naive, or kl k3",
            key="kl",
        )
    if algorithm.kl_gradient == "sequence" and changed(algorithm, "kl"):
        raise ConfigError("kl_gradient sequence is made of log-ratios and reads no estimator; drop kl", key="kl")
    if changed(algorithm, "sync_alpha") and not algorithm.sync_every:
        raise ConfigError("sync_alpha is given, but sync_every is 0; give both or none", key="sync_alpha")
    if algorithm.clip_dual and algorithm.clip_dual <= 1 + algorithm.clip_high:
        raise ConfigError(
            f"clip_dual: got {algorithm.clip_dual:g}, expected more than 1 + clip_high; 3 is usual, 0 is off",
            key="clip_dual",
        )


def check_grpo(grpo: Any) -> None:
    """Of `grpo.GRPO`: as `check_on_policy`, and for its own settings."""
    check_on_policy(grpo)
    each = grpo.reward_norm == "each"
    if each and grpo.kl_in == "reward" and grpo.beta:
        raise ConfigError("reward_norm each normalises every reward, and the KL in the reward is none; set kl_in loss")
    for name in changed(grpo, "scale", "advantage"):
        if each:
            raise ConfigError(f"{name} is for reward_norm after: each has its own scale; drop one", key=name)
    if changed(grpo, "scale") and grpo.advantage != "normal":
        raise ConfigError(f"scale: advantages of {grpo.advantage} are 1, 0 or -1; drop scale", key="scale")


def check_reinforce(reinforce: Any) -> None:
    """Of `reinforce.Reinforce`: as `check_on_policy`, and for its own settings."""
    check_on_policy(reinforce)
    if changed(reinforce, "kl_per") and reinforce.kl_place != "reward":
        raise ConfigError("kl_per is about the KL in the reward, and there is none; drop kl_per", key="kl_per")
    if changed(reinforce, "baseline_decay") and reinforce.baseline != "moving":
        raise ConfigError(
            f"baseline_decay is for baseline moving, and it is {reinforce.baseline}; drop one", key="baseline_decay"
        )


def check_reinforce_pp(reinforce_pp: Any) -> None:
    """Of `reinforce_pp.ReinforcePP`: as `check_on_policy`, and for its own settings."""
    check_on_policy(reinforce_pp)
    if changed(reinforce_pp, "kl_in") and reinforce_pp.baseline == "group":
        raise ConfigError(
            "kl_in is given, but with baseline group the KL is k2 in the loss in any case; drop kl_in", key="kl_in"
        )


def check_ppo(ppo: Any) -> None:
    """Of `ppo.PPO`: as `check_on_policy`, and for its own settings."""
    check_on_policy(ppo)
    if changed(ppo, "kl_per") and ppo.kl_place != "reward":
        raise ConfigError("kl_per is about the KL in the reward, and there is none; drop kl_per", key="kl_per")
    if not ppo.beta:
        for name in changed(ppo, "kl_control", "kl_band"):
            raise ConfigError(f"{name} is given, but beta is 0, so there is no KL; give beta, or drop {name}", key=name)
    for name in changed(ppo, "kl_target", "kl_horizon"):
        if ppo.kl_control != "adaptive":
            raise ConfigError(f"{name} is for kl_control adaptive, and it is fixed; drop {name}", key=name)
    for name in changed(ppo, "kl_low", "kl_high"):
        if ppo.kl_band == "off":
            raise ConfigError(f"{name} is for kl_band, which is off; give kl_band, or drop {name}", key=name)
    if ppo.kl_low >= ppo.kl_high:
        raise ConfigError(f"kl_low: got {ppo.kl_low:g}, expected less than kl_high {ppo.kl_high:g}", key="kl_low")
    if ppo.kl_control == "adaptive" and ppo.kl_band == "adapt":
        raise ConfigError("kl_control adaptive and kl_band adapt both move beta; drop one", key="kl_band")
    if changed(ppo, "lam") and ppo.gamma == 0:
        raise ConfigError("lam is given, but gamma is 0, so that no later reward counts; drop lam", key="lam")


def check_raft(raft: Any) -> None:
    """Of `raft.RAFT`: raise ConfigError for a setting that its selection does not read."""
    if changed(raft, "top_share") and raft.select == "best":
        raise ConfigError("top_share is for select top and batch, and best keeps one answer; drop it", key="top_share")
    if raft.margin and raft.select != "batch":
        raise ConfigError("margin is a lead over the whole step, for select batch; drop it", key="margin")
