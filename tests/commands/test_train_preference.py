"""Commands that learn from judged answers, from a command line to the files a user finds."""

from __future__ import annotations

import json
import math

import pytest
import torch

from desk import PAIRS, Desk, logprob, saved
from espalier.engines.reference import StartReference
from espalier.losses import pairs
from espalier.watch.preference import explain

LN2 = math.log(2)
RANKED = [
    {"prompt": f"name {i}", "responses": [f"best {i}", f"good {i} too", f"bad {i}"], "ranks": [0, 1, 2]}
    for i in range(6)
]
LABELS = [{"prompt": f"is {i} even", "response": "yes" if i % 4 else "no", "label": i % 2 == 0} for i in range(12)]


# ----------------------------------------------------------------------------------------------------------- commands

SIDES = {f"{name}_{side}" for name in ("rewards", "logprobs", "length") for side in ("chosen", "rejected")}
OF_PAIRS = {"accuracy", "margin", *SIDES}
OF_LABELS = {"accuracy", "good", "rewards_good", "rewards_bad", "imbalance"}
OF_STEPS = {"step", "loss", "lr", "epoch", "grad_norm", "samples", "groups", "tokens", "scored", "rows", "seconds"}
NAMES: dict[str, set[str]] = {
    "dpo": OF_PAIRS | {"sigmoid"},
    "simpo": OF_PAIRS | {"simpo"},
    "orpo": OF_PAIRS | {"odds_ratio", "nll"},
    "cpo": OF_PAIRS | {"cpo", "nll"},
    "kto": OF_LABELS | {"kto", "kl"},
    "bco": OF_LABELS | {"bco", "delta"},
}


def by_hand(command: str, model: str) -> float:
    """The loss of all of `PAIRS` before the first step, at the defaults of each command."""
    if command in ("dpo", "bco"):
        return LN2
    if command == "kto":
        return 0.5
    said = [[logprob(model, row["prompt"], row[side]) for side in ("chosen", "rejected")] for row in PAIRS]
    nll = -sum(w for (w, _), _ in said) / sum(n for (_, n), _ in said)
    softplus = [math.log1p(math.exp(-x)) for x in _leads(command, said)]
    return sum(softplus) / len(said) * {"orpo": 0.1}.get(command, 1.0) + (nll if command != "simpo" else 0.0)


def _leads(command: str, said: list[list[tuple[float, int]]]) -> list[float]:
    if command == "simpo":
        return [2.0 * (w / n - l / m) - 1.0 for (w, n), (l, m) in said]
    if command == "cpo":
        return [0.1 * (w - l) for (w, _), (l, _) in said]
    return [_odds(w / n) - _odds(l / m) for (w, n), (l, m) in said]


def _odds(mean: float) -> float:
    return mean - math.log(1 - math.exp(mean))


@pytest.mark.parametrize("command", NAMES)
def test_every_command_trains_from_the_loss_that_its_formula_says(desk: Desk, command: str) -> None:
    run = desk.run(command, "--samples-per-step", 24, "--epochs", 8, "--eval-data", desk.pairs, "--eval-every", 4)
    first, last = run.steps[0], run.steps[-1]
    assert first["loss"] == pytest.approx(by_hand(command, desk.model), abs=2e-5)
    assert first.keys() >= OF_STEPS | NAMES[command] and first["samples"] == 24
    assert last["loss"] < first["loss"] - 0.1 and last["accuracy"] > 0.9
    if command == "dpo":
        assert first["margin"] == first["rewards_chosen"] == first["rewards_rejected"] == first["accuracy"] == 0
    held = run.held_out[-1]
    assert held.keys() >= {"eval_loss", "eval_accuracy", *(f"eval_{name}" for name in NAMES[command])}
    assert held["eval_loss"] < last["loss"] and held["eval_accuracy"] > 0.9, "the same rows, a step later"
    checks = run.checks
    assert checks["preferences"]["verdict"] in ("pass", "warn") and checks["first_loss"]["verdict"] == "pass"
    assert ("reference" in checks) == (command in ("dpo", "kto", "bco"))
    assert checks.get("reference", {"value": "0.0e+00 "})["value"].startswith("0.0e+00 ")
    assert (run.path / "model" / "config.json").is_file() and isinstance(run.findings, list)
    assert f"held-out loss {held['eval_loss']:.4f}, accuracy {held['eval_accuracy']:.1%}" in desk.out


def test_lists_are_compared_pair_by_pair_or_as_an_order(desk: Desk) -> None:
    data = desk.rows("ranked", RANKED)
    run = desk.run(
        "dpo", "--variant", "sigmoid", "plackett_luce=0.5", "--samples-per-step", 18, "--steps", 6, data=data
    )
    first = run.steps[0]
    assert first["sigmoid"] == pytest.approx(LN2, abs=1e-6)
    assert first["plackett_luce"] == pytest.approx(math.log(6), abs=1e-6)
    assert first["loss"] == pytest.approx(LN2 + 0.5 * math.log(6), abs=1e-6)
    assert (first["groups"], first["samples"]) == (6, 18) and run.steps[-1]["accuracy"] > 0.9
    assert "6 prompts; 18 pairs; 0 ties" in run.checks["preferences"]["value"]


@pytest.mark.parametrize("command", ["kto", "bco"])
def test_labels_need_no_pairs(desk: Desk, command: str) -> None:
    run = desk.run(command, "--epochs", 4, "--samples-per-step", 12, data=desk.rows("labels", LABELS))
    first = run.steps[0]
    assert first["good"] == 0.5 and first["groups"] == 12
    assert run.checks["preferences"]["value"] == "12 prompts; 6 good; 6 bad"
    assert first["loss"] == pytest.approx({"kto": 0.5, "bco": LN2}[command], abs=1e-6)
    assert first.get("kl", 0.0) == first.get("delta", 0.0) == 0.0
    last = run.steps[-1]
    assert last["rewards_good"] > last["rewards_bad"] and last["loss"] < first["loss"] - 0.02


# --------------------------------------------------------------------------------------------------------- references


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((one[name].float() - other[name].float()).abs().max().item() for name in one)


def test_a_precomputed_reference_trains_the_same_and_is_found_again(desk: Desk) -> None:
    flags = ("--epochs", 4, "--eval-fraction", 0.2)
    kept = desk.run("dpo", *flags, name="memory")
    assert ", reference 0.00" in desk.out
    table = desk.run("dpo", *flags, "--reference", "precomputed", name="precomputed")
    assert furthest(kept.weights, table.weights) < 1e-5
    for one, two in zip(kept.lines, table.lines, strict=True):
        for name in (one.keys() & (NAMES["dpo"] | {"loss", "eval_loss", "eval_margin"})) - {"accuracy"}:
            assert one[name] == pytest.approx(two[name], abs=1e-4), name
    assert table.checks["reference"]["verdict"] == "pass"
    assert ", reference 0.00" not in desk.out, "a table takes no memory"
    entries = list((desk.folder / "cache" / "reference").glob("[!.]*"))
    stamps = [path.stat().st_mtime_ns for path in entries]
    again = desk.run("dpo", *flags, "--reference", "precomputed", name="again")
    assert "groups held against the reference" not in desk.out
    assert list((desk.folder / "cache" / "reference").glob("[!.]*")) == entries and len(entries) == 1
    assert [path.stat().st_mtime_ns for path in entries] == stamps
    assert furthest(again.weights, table.weights) == 0


def test_another_model_as_the_reference_is_named_and_not_failed(desk: Desk) -> None:
    other = saved(desk.folder / "other", seed=1)
    run = desk.run("dpo", "--reference-model", other, "--steps", 2)
    found = run.checks["reference"]
    assert found["verdict"] == "pass" and found["limit"] == f"any: it is {other}, as asked"
    assert float(found["value"].split()[0]) > 0.1
    assert run.checks["first_loss"]["verdict"] == "pass" and abs(run.steps[0]["margin"]) > 1e-3
    assert run.steps[0]["loss"] == pytest.approx(LN2 - run.steps[0]["margin"] / 2, abs=0.02), "to first order"
    table = desk.run("dpo", "--reference-model", other, "--reference", "precomputed", "--steps", 2, name="table")
    assert furthest(run.weights, table.weights) < 1e-5
    same = desk.run("dpo", "--reference-model", desk.model, "--steps", 2, name="same")
    start = desk.run("dpo", "--steps", 2, name="start")
    assert furthest(same.weights, start.weights) < 1e-5 and same.steps[0]["loss"] == pytest.approx(LN2, abs=1e-6)
    desk.run("bco", "--reference-model", other, "--steps", 2, "--beta", 5, name="bco")  # good and bad then differ
    desk.run("kto", "--reference-model", other, "--steps", 2, name="kto")
    desk.model = saved(desk.folder / "gpt2", "gpt2")
    desk.run("dpo", "--reference-model", other, "--steps", 2, name="another architecture")


def test_under_lora_the_base_is_the_reference_and_a_continued_adapter_is_its_own(desk: Desk) -> None:
    lora = ("--lora-rank", 4, "--steps", 4)
    base = desk.run("dpo", *lora, "--reference-model", desk.model, name="base")
    start = desk.run("dpo", *lora, "--export", "adapter", name="start")
    assert start.steps[0]["loss"] == pytest.approx(LN2, abs=1e-6) and start.steps[0]["margin"] == 0
    for one, two in zip(base.steps, start.steps, strict=True):
        assert one["margin"] == pytest.approx(two["margin"], abs=1e-4)
    adapter = str(start.path / "model")
    more = desk.run("dpo", "--adapter", adapter, "--steps", 4, name="more")
    assert more.steps[0]["loss"] == pytest.approx(LN2, abs=1e-6) and more.steps[0]["margin"] == 0
    assert more.checks["reference"]["value"].startswith("0.0e+00 ")
    against = desk.run("dpo", "--adapter", adapter, "--steps", 4, "--reference-model", desk.model, name="against")
    assert against.steps[0]["margin"] > 0.1, "the adapter has learned some of it against its base"
    table = desk.run("dpo", "--adapter", adapter, "--steps", 4, "--reference", "precomputed", name="table")
    assert [s["loss"] for s in table.steps] == pytest.approx([s["loss"] for s in more.steps], abs=1e-4)


def test_a_table_of_the_base_is_not_that_of_an_adapter_that_is_continued(desk: Desk) -> None:
    """Both in one cache: the first margin is 0 against either, and each has a table of its own."""
    precomputed = ("--reference", "precomputed", "--steps", 1)
    base = desk.run("dpo", *precomputed, name="base")
    adapter = str(desk.run("dpo", "--lora-rank", 4, "--steps", 4, "--export", "adapter", name="adapter").path / "model")
    more = desk.run("dpo", "--adapter", adapter, *precomputed, name="more")
    assert [run.steps[0]["margin"] for run in (base, more)] == pytest.approx([0, 0], abs=1e-6)
    assert more.checks["reference"]["value"].startswith("0.0e+00 ")
    assert len(list((desk.folder / "cache" / "reference").glob("[!.]*"))) == 2


def test_a_moving_reference_starts_the_margin_again(desk: Desk) -> None:
    run = desk.run("dpo", "--sync-every", 2, "--sync-alpha", 1, "--steps", 5)
    assert [abs(s["margin"]) < 1e-6 for s in run.steps] == [True, False, True, False, True]
    assert run.steps[2]["loss"] == pytest.approx(LN2, abs=1e-6)


@pytest.mark.parametrize(
    ("command", "flags", "said"),
    [
        ("dpo", ("--sync-every", 2), "the reference moves every 2 steps"),
        ("kto", (), "kto builds samples across the groups of each step"),
    ],
)
def test_what_a_table_cannot_be_is_refused_with_the_way_out(
    desk: Desk, command: str, flags: tuple[object, ...], said: str
) -> None:
    desk.run(command, "--reference", "precomputed", *flags, code=2)
    assert said in desk.err and "set reference: memory" in desk.err


# --------------------------------------------------------------------------------------------------------------- checks


def test_a_reference_that_is_off_stops_the_run(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    told = StartReference.logprobs
    monkeypatch.setattr(
        StartReference, "logprobs", lambda self, groups: [[x + 0.01 for x in said] for said in told(self, groups)]
    )
    run = desk.run("dpo", code=2)
    assert "reference" in desk.err and "1.0e-02 nats a token" in desk.err and "Leave reference_model empty" in desk.err
    assert run.checks["reference"]["verdict"] == "fail" and run.checks["first_loss"]["verdict"] == "pass"
    assert not (run.path / "metrics.jsonl").exists() and not (run.path / "model").exists()


@pytest.mark.parametrize("command", ["simpo", "orpo"])
def test_sides_that_are_mixed_up_in_the_loss_stop_the_run(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    means = pairs.means
    monkeypatch.setattr(pairs, "means", lambda *given: means(*given).flip(1))
    run = desk.run(command, code=2)
    assert run.checks["first_loss"]["verdict"] == "fail"
    assert "chosen and rejected are swapped" in desk.err and "espalier inspect" in desk.err


def test_bfloat16_passes_within_the_bound_that_it_prints(desk: Desk) -> None:
    for kind in ("memory", "precomputed"):
        run = desk.run("dpo", "--dtype", "bfloat16", "--reference", kind, "--steps", 2, name=kind)
        found = run.checks["reference"]
        assert found["verdict"] == "pass" and "(bfloat16" in found["limit"]
        assert found["limit"] in desk.out and run.checks["first_loss"]["verdict"] == "pass"
        assert float(found["value"].split()[0]) <= float(found["limit"].split()[1])
        assert run.steps[0]["loss"] == pytest.approx(LN2, abs=0.01)
    simpo = desk.run("simpo", "--dtype", "bfloat16", "--steps", 1, name="simpo")
    assert simpo.checks["first_loss"]["verdict"] == "pass"


def test_check_and_inspect_take_a_command(desk: Desk) -> None:
    desk.run("check dpo", "--reference", "precomputed", name="checked")
    assert "reference 0.0e+00" in desk.out or "nats a token from the policy" in desk.out
    assert [p.name for p in (desk.folder / "checked").iterdir()] == ["preflight.json"]
    desk.run("inspect dpo", "--rows", 1)
    assert "0+0?" in desk.out and "1 or so" in desk.out


# ---------------------------------------------------------------------------------------------------------- watchers


def test_pairs_known_by_heart_are_said_to_be(desk: Desk) -> None:
    few = desk.rows("few", PAIRS[:4])
    run = desk.run("dpo", "--epochs", 60, "--beta", 1, data=few)
    kinds = [found["kind"] for found in run.findings]
    assert "memorised" in kinds
    found = run.findings[kinds.index("memorised")]
    assert "the training pairs are memorised" in found["text"] and "set eval_fraction" in found["text"]
    noted = {note: line["step"] for line in run.steps for note in line.get("notes", ())}
    assert noted == {f["text"]: f["step"] for f in run.findings}
    assert all(" ".join(f"step {f['step']}: {f['text']}".split()) in desk.out for f in run.findings)
    assert run.findings == json.loads(json.dumps(explain(run.lines, warmup=round(0.03 * 60))))


# --------------------------------------------------------------------------------------------------------- judgements

SCORED = [
    {"prompt": f"rate {i}", "responses": ["first", "second", "third"], "scores": [9.0, 8.0 + (i % 2) / 2, 2.0]}
    for i in range(6)
]


def test_judgements_are_left_out_capped_and_flipped_as_asked_and_it_is_printed(desk: Desk) -> None:
    data = desk.rows("scored", SCORED)
    runs = {}
    for name, flags in {
        "all": (),
        "gap": ("--min-gap", 0.75),
        "few": ("--max-pairs", 1),
        "flip": ("--flip", 0.9999),
    }.items():
        runs[name] = desk.run("dpo", *flags, "--steps", 6, "--samples-per-step", 18, data=data, name=name)
        values = runs[name].checks["preferences"]["value"]
        expected = {"all": 18, "gap": 15, "few": 6, "flip": 18}[name]
        assert f"6 prompts; {expected} pairs" in values
        if name == "gap":
            assert "3 dropped: gap below min_gap" in values and "judgements: those less than 0.75 apart" in desk.out
        if name == "few":
            assert "12 dropped: over max_pairs" in values and "judgements: at most 1 a prompt" in desk.out
        if name == "flip":
            assert "judgements: 99.99 % are flipped, held-out ones never" in desk.out
        assert ("judgements:" in desk.out) == (name != "all")
    assert runs["few"].steps[0]["groups"] == 9, "answers that are in no comparison are not computed"
    assert runs["all"].steps[0]["groups"] == 6
    turned, plain = runs["flip"].steps[0], runs["all"].steps[0]
    assert turned["logprobs_chosen"] == pytest.approx(plain["logprobs_rejected"], rel=1e-5)
    assert turned["logprobs_rejected"] == pytest.approx(plain["logprobs_chosen"], rel=1e-5)


def test_held_out_judgements_are_never_flipped(desk: Desk) -> None:
    other = [{**row, "prompt": f"held {row['prompt']}"} for row in SCORED]
    data, held = desk.rows("scored", SCORED), desk.rows("held", other)
    more = ("--steps", 1, "--samples-per-step", 18, "--eval-data", held, "--lr", 1e-9, "--skip-checks", "update")
    plain, turned = (
        desk.run("dpo", "--flip", flip, *more, data=data, name=f"flip{flip}").held_out[-1] for flip in (0, 0.9999)
    )
    assert turned["eval_logprobs_chosen"] == pytest.approx(plain["eval_logprobs_chosen"], rel=1e-4)
    assert turned["eval_logprobs_chosen"] != pytest.approx(turned["eval_logprobs_rejected"], rel=1e-3)
    desk.run("dpo", "--flip", 0.5, "--eval-fraction", 0.2, data=data, name="refused", code=2)
    assert "flip would flip held-out judgements" in desk.err
