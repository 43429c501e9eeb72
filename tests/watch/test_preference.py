"""The watcher of preference training: each finding on the curve that has it, and silence on the others."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from espalier.loop.metrics import MetricsFile, read_lines
from espalier.watch.preference import PreferenceWatch, explain

Line = dict[str, float]
LN2 = math.log(2)


def curve(
    steps: int, chosen: float, rejected: float, *, noise: float = 1.0, beta: float = 0.1, **more: float
) -> list[Line]:
    """DPO-like metrics whose log-ratios move by `chosen` and `rejected` nats over the run, from -100 and -120."""
    draw = random.Random(4)
    lines = []
    for k in range(steps):
        w, l = (x * max(0, k - 20) / (steps - 20) for x in (chosen, rejected))
        margin = beta * (w - l)
        line = {"step": k + 1, "loss": math.log1p(math.exp(-margin)), "accuracy": 0.5 + 0.3 * (margin > 0.1)}
        line |= {"rewards_chosen": beta * w, "rewards_rejected": beta * l, "margin": margin + draw.gauss(0.02, 0.01)}
        line |= {"logprobs_chosen": draw.gauss(w - 100, noise), "logprobs_rejected": draw.gauss(l - 120, noise)}
        lines.append({**line, "epoch": (k + 1) / steps, **more})
    return lines


def kinds(lines: list[Line], **settings: float) -> list[str]:
    return [f["kind"] for f in explain(lines, **settings)]


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        (0.0, 0.0, []), (8.0, -3.0, []), (-8.0, -20.0, ["both_fall"]), (-8.0, -1.0, ["chosen_falls"]),
        (2.0, -30.0, []), (20.0, 12.0, ["rejected_rises"]), (1.0, 12.0, ["rejected_rises"]),
    ],
)  # fmt: skip
def test_what_moves_the_wrong_way(chosen: float, rejected: float, expected: list[str]) -> None:
    assert sorted(set(kinds(curve(120, chosen, rejected)))) == expected


def test_falling_together_is_explained_by_the_margin() -> None:
    found = explain(curve(120, -8, -20))[0]
    assert "Expected for DPO" in found["text"] and "share most of their tokens" in found["text"]
    assert "sft_coef" in found["text"] and "nats per answer" in found["text"]
    assert found["numbers"]["chosen_now"] < found["numbers"]["chosen_first"] == pytest.approx(-100, abs=1)
    lost = explain(curve(120, -20, -8))[0]
    assert "This is a problem: the margin does not grow" in lost["text"]
    assert "This is a problem: the margin does not grow" in explain(curve(120, 1, 12))[0]["text"]


def test_windows_do_not_overlap() -> None:
    lines = [{"step": k + 1, "loss": 0.5, "logprobs_chosen": -100.0 - 10 * (k >= 5)} for k in range(60)]
    assert explain(lines)[:1] == [] and explain(lines, window=5)[0]["step"] == 10


def test_noise_alone_is_not_a_fall() -> None:
    """A sum that sinks by 5 nats in noise of 30 is nothing; the reward, held against the reference, says more."""
    assert kinds(curve(60, -5, -5, noise=30)) == []
    found = explain(curve(60, -16, -16, noise=30))[0]
    assert found["kind"] == "both_fall" and "reward 0 to -0.54" in found["text"]


def test_log_probabilities_count_a_token_where_lengths_are_known() -> None:
    """Answers that get longer have a lower sum and the same mean."""
    lines = [
        {**line, "logprobs_chosen": -(k + 50.0), "length_chosen": (k + 50.0) / 2, "rewards_chosen": 0.0}
        for k, line in enumerate(curve(80, 0, 0))
    ]
    assert kinds(lines) == []
    assert "both_fall" in kinds(
        [{**line, "length_chosen": 50.0, "length_rejected": 60.0} for line in curve(80, -8, -20)]
    )
    text = explain([{**line, "length_chosen": 50.0, "length_rejected": 60.0} for line in curve(80, -8, -20)])[0]["text"]
    assert "log-probability -2.0" in text and "nats per token" in text


def test_a_finding_is_said_once_and_again_when_twice_as_large() -> None:
    found = [f for f in explain(curve(200, -30, -60)) if f["kind"] == "both_fall"]
    assert 2 <= len(found) <= 4
    assert all(b["size"] >= 2 * a["size"] for a, b in pairwise(found))


def certain(steps: int = 40, first_epoch: float = 1.5, **more: float) -> list[Line]:
    return [
        {"step": k + 1, "loss": 0.01, "accuracy": 1.0, "margin": 6.0, "epoch": first_epoch + k / 1000, **more}
        for k in range(steps)
    ]


def test_certainty_is_memory_after_the_first_epoch() -> None:
    found = explain(certain())
    assert [f["kind"] for f in found] == ["memorised"] and found[0]["step"] == 20
    for part in ("accuracy 1", "mean loss 0.0100 <= 0.02", "steps 1 to 20", "epoch 1.52", "Nothing is held out"):
        assert part in found[0]["text"]


def test_certainty_on_new_pairs_is_not_memory() -> None:
    assert kinds(certain(first_epoch=0.2)) == ["separable"]
    found = explain(certain(steps=40, first_epoch=0.99))
    assert [(f["kind"], f["step"]) for f in found] == [("memorised", 31)]  # the first window of old pairs alone


def test_held_out_pairs_decide() -> None:
    evaluated = {"step": 5, "eval_accuracy": 0.6, "eval_loss": 2.0}
    lines = certain(first_epoch=0.2)
    found = explain([*lines[:5], evaluated, *lines[5:]])
    assert [f["kind"] for f in found] == ["memorised"] and "Held-out accuracy: 60.0% at step 5" in found[0]["text"]
    assert found[0]["numbers"]["eval_accuracy"] == 0.6
    good = [*certain()[:5], {**evaluated, "eval_accuracy": 0.97}, *certain()[5:]]
    assert kinds(good) == ["separable"]


@pytest.mark.parametrize("change", [{"loss": 0.03}, {"accuracy": 0.99}])
def test_less_than_certainty_is_neither(change: Line) -> None:
    assert kinds(certain(**change)) == []


def test_a_likelihood_term_does_not_hide_certainty() -> None:
    assert kinds(certain(loss=2.0)) == kinds(certain(loss=2.0, nll=1.99)) == kinds(certain(nll=1.99)) == []
    assert kinds(certain(loss=2.0, nll=1.99, sigmoid=0.01)) == ["memorised"]
    assert kinds(certain(loss=2.0, nll=1.99, sigmoid=0.03)) == []
    assert kinds(certain(loss=2.0, sigmoid=0.01, ipo=0.03)) == [], "the largest of several decides"


def test_the_logged_loss_of_pairs_decides_and_not_their_margin() -> None:
    """ORPO: log odds 4.6 apart, so -log sigma 0.01, while the margin is odds_coef 0.1 of that. SimPO: beta times the
    lead is 6 and gamma 5, so that the loss is log(1 + e^-1) = 0.3133, though the margin is large."""
    orpo = certain(loss=1.2, nll=1.199, odds_ratio=0.01, margin=0.46)
    assert kinds(orpo) == ["memorised"] and "mean odds_ratio 0.0100 <= 0.02" in explain(orpo)[0]["text"]
    assert kinds(certain(loss=1.3, nll=1.0, simpo=0.3133, margin=6.0)) == []


def labelled(steps: int, good: float, bad: float, *, share: float = 0.25, **more: float) -> list[Line]:
    """What KTO logs: sums over a side divided by all answers. Means of log-ratios move by `good` and `bad` nats."""
    draw, lines = random.Random(5), []
    for k in range(steps):
        moved = [x * max(0, k - 20) / (steps - 20) for x in (good, bad)]
        line = {"step": k + 1, "loss": 0.4, "accuracy": 0.7, "good": share, "kl": 0.2}
        for name, x, part in zip(("good", "bad"), moved, (share, 1 - share), strict=True):
            line |= {f"rewards_{name}": 0.1 * x * part - more.get("delta", 0.0) * part}
            line |= {f"logprobs_{name}": (draw.gauss(x, 0.5) - 100) * part}
        lines.append({**line, **more})
    return lines


def test_single_answers_that_fall_are_explained() -> None:
    assert kinds(labelled(120, 0, 0)) == ["stuck"] and kinds(labelled(120, 4, -4)) == []
    found = explain(labelled(120, -8, -20))[0]
    assert found["kind"] == "both_fall" and found["numbers"]["chosen_first"] == pytest.approx(-100, abs=0.5)
    for part in ("good answers have become less likely", "bad answers too", "term of its own", "desirable_weight"):
        assert part in found["text"]
    assert "margin does not grow" in explain(labelled(120, -20, -8))[0]["text"]
    rises = explain(labelled(120, 1, 12))[0]
    assert rises["kind"] == "rejected_rises" and rises["text"].startswith("bad answers have become more likely")


def test_a_step_without_one_side_says_nothing_of_it() -> None:
    lines = [{**line, "good": 1.0} if k == 110 else line for k, line in enumerate(labelled(120, -8, -20))]
    assert kinds(lines[:120]) and "bad answers too" in explain(lines[:110])[0]["text"]


def test_the_shift_of_bco_is_no_fall() -> None:
    """Rewards are logged less delta; it rises from 0 to 1 while nothing moves."""
    lines = [{**labelled(1, 0, 0, delta=k / 100)[0], "step": k + 1, "logprobs_good": -25.0} for k in range(100)]
    assert "chosen_falls" not in kinds(lines) and "both_fall" not in kinds(lines)


def test_standing_still_after_the_warmup() -> None:
    still = [{"step": k + 1, "loss": LN2, "accuracy": 0.0, "margin": 1e-5} for k in range(70)]
    found = explain(still, warmup=25)
    assert [(f["kind"], f["step"]) for f in found] == [("stuck", 65)] and "mean loss 0.6931" in found[0]["text"]
    assert kinds([{**line, "margin": 0.5 if line["step"] == 1 else 0.0} for line in still]) == []  # began elsewhere
    assert kinds([still[0], *({**line, "margin": 0.01} for line in still[1:])]) == []
    assert kinds([still[0], *({**line, "loss": LN2 - 0.01} for line in still[1:])]) == []
    assert kinds([{**line, "loss": 2 - line["step"] / 100, "nll": 1.0} for line in still]) == ["stuck"]


def test_exploding_margins() -> None:
    lines = [{"step": k + 1, "loss": 0.1, "margin": float(k)} for k in range(120)]
    found = explain(lines)
    assert [f["kind"] for f in found] == ["exploding"] * 3  # at means above 20, 40 and 80
    assert [round(f["numbers"]["margin"]) for f in found] == [20, 42, 84]
    against = explain([{**line, "margin": -line["margin"]} for line in lines])
    assert "in favour of the rejected" in against[0]["text"]


def test_a_reference_point_that_stays_at_zero() -> None:
    lines = [{"step": k + 1, "loss": 0.4, "kl": 0.0, "rewards_good": 0.2, "rewards_bad": -0.3} for k in range(30)]
    assert kinds(lines) == ["kl_zero"]
    assert kinds(lines, warmup=20) == []
    assert kinds([{**line, "rewards_good": 0.01, "rewards_bad": -0.01} for line in lines]) == []
    assert kinds([{**line, "kl": 0.0 if line["step"] % 10 else 0.1} for line in lines]) == []


@pytest.mark.parametrize("make", [lambda: curve(200, -30, -60), lambda: certain(60)], ids=["falling", "memorised"])
@pytest.mark.parametrize("cut", [0, 15, 25, 90])
def test_a_resumed_watch_says_what_the_first_one_would_have(make: Callable[[], list[Line]], cut: int) -> None:
    lines = make()
    whole = PreferenceWatch()
    said = [whole.see(int(line["step"]), line) for line in lines]
    resumed = PreferenceWatch.replay(lines[:cut])
    assert [resumed.see(int(line["step"]), line) for line in lines[cut:]] == said[cut:]
    assert resumed.findings == whole.findings


def test_a_finding_is_one_line_and_json() -> None:
    watch = PreferenceWatch()
    said = [text for line in certain(30) for text in watch.see(int(line["step"]), line)]
    assert len(said) == 1 and said[0].startswith("the training pairs are memorised") and "\n" not in said[0]
    assert json.loads(json.dumps(explain(certain(30)), allow_nan=False)) == explain(certain(30))


def test_every_finding_says_what_it_means_and_what_to_do() -> None:
    still = [{"step": k + 1, "loss": LN2, "margin": 0.0} for k in range(50)]
    far = [{"step": k + 1, "loss": 0.1, "margin": 30.0} for k in range(30)]
    at_zero = [{"step": k + 1, "loss": 0.4, "kl": 0.0, "rewards_good": 0.2} for k in range(30)]
    falling = [curve(120, *moves) for moves in ((-8, -20), (-20, -8), (-8, -1), (2, 12), (20, 12))]
    runs = [*falling, labelled(120, -8, -20), labelled(120, -20, -8), certain(), certain(first_epoch=0.1)]
    found = [finding for lines in (*runs, still, far, at_zero) for finding in explain(lines)]
    assert {finding["kind"] for finding in found} == {
        *("both_fall", "chosen_falls", "rejected_rises", "memorised", "separable", "stuck", "exploding", "kl_zero")
    }
    for text in (finding["text"] for finding in found):
        seen, rest = text.split(" What it means: ")
        meaning, advice = rest.split(" What to do: ")
        for part in (seen, meaning, advice):
            assert part.endswith(".") and "\n" not in part and "  " not in part, text
        assert text[0].islower() or text.startswith("KTO"), text


def test_a_metrics_file_reads_back(tmp_path: Path) -> None:
    """NaN is written as text and is left out; other keys are passed over."""
    with MetricsFile(tmp_path / "metrics.jsonl") as file:
        for line in certain(30):
            file.append({**line, "rows": "abc", "margin": math.nan})
    assert [f["kind"] for f in explain(read_lines(tmp_path / "metrics.jsonl"))] == ["memorised"]


def test_a_window_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="window: got 1"):
        PreferenceWatch(window=1)
