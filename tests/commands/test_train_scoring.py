"""Whole runs of `espalier reward` on a tiny model: what is learned, calibrated, exported, judged and refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from espalier.commands import judge
from espalier.commands import main as cli
from espalier.engines.learner import TorchLearner
from espalier.errors import ConfigError, DataError, ModelError, RowError
from runs import assert_same
from scoring import Place, correct, lists, pairs, steps_of, workbench


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = Place(tmp_path_factory.mktemp("scoring"))
    made.data("pairs", pairs(160, 0))
    made.data("lists", lists(80, 1))
    made.data("two", lists(80, 2, scores="two"))
    made.data("held", pairs(60, 3, "h"))
    made.data("held_lists", lists(40, 4, tag="hl"))
    made.data("held_two", lists(40, 5, tag="ht", scores="two"))
    return made


def files(place: Place, *names: str) -> list[str]:
    return [str(place.folder / f"{name}.jsonl") for name in names]


def flags(place: Place, data: str, held: str) -> list[str]:
    return ["--data", *files(place, data), "--eval-data", *files(place, held)]


# ----------------------------------------------------------------------------------------------------------- objectives

LEARNED: dict[str, tuple[str, tuple[str, ...]]] = {
    "pairs": ("pairs", ()),
    "K-way": ("lists", ()),
    "every pair alike": ("lists", ("--weighting", "pairs")),
    "whole orders": ("lists", ("--objective", "plackett_luce")),
    "grades": ("lists", ("--objective", "pointwise")),
    "grades of two dimensions": ("two", ("--objective", "pointwise", "--dimensions", "many=3", "few=-1")),
    "margin": ("lists", ("--margin", "0.2")),
    "smoothing": ("pairs", ("--label-smoothing", "0.1")),
    "Rao-Kupper": ("lists", ("--ties", "rao_kupper")),
    "Davidson": ("lists", ("--ties", "davidson")),
    "centering": ("pairs", ("--centering", "0.01")),
    "comparisons and grades": ("lists", ("--pointwise-coef", "0.5")),
}


@pytest.mark.parametrize("name", LEARNED)
def test_every_objective_learns_the_rule(place: Place, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("espalier.commands.judge.sensitivity", lambda *_, **__: None)  # a test of its own is below
    data, more = LEARNED[name]
    held = {"pairs": "held", "lists": "held_lists", "two": "held_two"}[data]
    run = place.run("reward", name.replace(" ", "-"), *flags(place, data, held), "--steps", "20", *more)
    found = workbench(run)["accuracy"]["all"]
    assert found["value"] > 0.9 and found["n"] >= 60, found
    made = steps_of(run)
    assert made[-1]["loss"] < made[0]["loss"]
    if "accuracy" in made[0]:
        assert made[0]["accuracy"] < 0.8
    terms = {"whole orders": "plackett_luce", "grades": "pointwise", "grades of two dimensions": "pointwise"}
    assert terms.get(name, "bradley_terry") in made[0]
    if name == "comparisons and grades":  # graded answers alone are in the second term, and it is trained
        assert made[0]["loss"] == pytest.approx(made[0]["bradley_terry"] + 0.5 * made[0]["pointwise"], rel=1e-6)
        assert made[-1]["pointwise"] < 0.1 < made[0]["pointwise"]
    if name == "centering":
        assert made[0]["loss"] == pytest.approx(made[0]["bradley_terry"] + 0.01 * made[0]["centering"], rel=1e-6)


# --------------------------------------------------------------------------------------- calibration, export, workbench


@pytest.fixture(scope="module")
def trained(place: Place) -> tuple[Path, dict[tuple[int, ...], float]]:
    """A calibrated reward model whose base had pad == eos, and what the learner said of each held-out sample last."""
    said: dict[tuple[int, ...], float] = {}
    say = TorchLearner.say

    def heard(self: TorchLearner, groups: Any, what: Any) -> Any:
        outputs = say(self, groups, what)
        for s, of_sample in zip((s for g in groups for s in g), outputs, strict=True):
            said[tuple(s.tokens)] = of_sample.scores[0][0]
        return outputs

    base = place.save("llama", "padded", pad_token="</s>")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchLearner, "say", heard)
        more = ("--steps", "12", "--calibrate-on", "all", "--calibrate-scale", "--ties", "davidson")
        held = files(place, "held", "held_lists")
        run = place.run(
            *("reward", "trained", "--data", *files(place, "lists"), "--eval-data", *held, *more),
            model=base, checks=True,
        )  # fmt: skip
    return run, said


def test_transformers_alone_says_what_the_learner_said(trained: Any) -> None:
    run, said = trained
    model = AutoModelForSequenceClassification.from_pretrained(run / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    assert tokenizer.pad_token_id == model.config.pad_token_id not in (2, 4)
    held = list(said)[-40:]  # the workbench comes last, after the calibration
    rows = tokenizer.pad({"input_ids": [list(tokens) for tokens in held]}, return_tensors="pt")
    with torch.no_grad():
        logits = model(**{name: rows[name] for name in ("input_ids", "attention_mask")}).logits[:, 0]
    found = logits + model.config.espalier_reward_bias[0]
    assert found.tolist() == pytest.approx([said[tokens] for tokens in held], abs=1e-4)


def test_reference_answers_have_mean_0_and_deviation_1_after_a_reload(place: Place, trained: Any) -> None:
    run, _ = trained
    told: list[float] = []
    say = TorchLearner.say

    def heard(self: TorchLearner, groups: Any, what: Any) -> Any:
        outputs = say(self, groups, what)
        told.extend(of_sample.scores[0][0] for of_sample in outputs)
        return outputs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchLearner, "say", heard)
        patch.setattr("espalier.commands.judge.sensitivity", lambda *_, **__: None)
        more = ("--data", *files(place, "lists"), "--eval-only", "--ties", "davidson")
        place.run("reward", "reference", *more, model=str(run / "model"))
    scores = torch.tensor(told, dtype=torch.float64)
    assert len(scores) == 80 * 4
    assert abs(scores.mean().item()) < 1e-5 and scores.std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_a_model_is_calibrated_on_the_training_side_and_judged_on_the_other(
    place: Place, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 80 lists of 4 answers a share is held out; the answers scored for the calibration are all of the others."""
    training: set[tuple[int, ...]] = set()
    held_out: set[tuple[int, ...]] = set()
    scored: list[tuple[int, ...]] = []
    say, calibrating = TorchLearner.say, [False]

    def said(self: TorchLearner, groups: Any, what: Any) -> Any:
        if calibrating[0]:
            scored.extend(tuple(s.tokens) for g in groups for s in g)
        return say(self, groups, what)

    calibrate = judge._calibrate

    def watched(session: Any) -> None:
        calibrating[0] = True
        calibrate(session)
        calibrating[0] = False
        for store, kept in zip(session.opened.held_out, session.opened.kept_back, strict=True):
            held_out.update(tuple(s.tokens) for i in kept for s in store.group(i))
        for store, kept in zip(session.opened.main, session.opened.chosen, strict=True):
            training.update(tuple(s.tokens) for i in kept for s in store.group(i))

    monkeypatch.setattr(TorchLearner, "say", said)
    monkeypatch.setattr(judge, "_calibrate", watched)
    monkeypatch.setattr(judge, "sensitivity", lambda *_, **__: None)
    more = ("--eval-fraction", "0.3", "--steps", "2", "--calibrate-on", "all")
    run = place.run("reward", "sides", "--data", *files(place, "lists"), *more)
    assert set(scored) == training and not training & held_out
    assert len(held_out) > 20 and len(training) + len(held_out) == 320
    assert f"calibrated on {len(set(scored))} answers" in " ".join(capsys.readouterr().out.split())
    assert workbench(run)["counts"]["groups"] * 4 == len(held_out)


def close(one: Any, other: Any, path: str = "") -> None:
    """Two workbenches say the same; sensitivity is rounding itself."""
    if isinstance(one, dict) and path != "/sensitivity":
        assert one.keys() == other.keys(), path
        for key in one:
            close(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, list):
        for place, (a, b) in enumerate(zip(one, other, strict=True)):
            close(a, b, f"{path}/{place}")
    elif path != "/sensitivity":
        assert one == (pytest.approx(other, abs=2e-4) if isinstance(other, float) else other), path


def test_eval_only_says_the_numbers_that_training_ended_with(place: Place, trained: Any) -> None:
    run, _ = trained
    more = ("--data", *files(place, "held", "held_lists"), "--eval-only", "--ties", "davidson")
    again = place.run("reward", "again", *more, model=str(run / "model"))
    close(workbench(again), workbench(run))
    assert not (again / "model").exists() and not list((again / "checkpoints").iterdir())


def test_the_workbench_is_whole(trained: Any, capsys: Any) -> None:
    run, _ = trained
    found = workbench(run)
    assert list(found) == [
        *("counts", "accuracy", "calibration", "ties", "length", "format", "agreement", "best_of_n", "sensitivity"),
        "intervals",
    ]
    assert found["counts"]["groups"] == 100 and found["accuracy"]["all"]["value"] > 0.9
    assert found["accuracy"]["source"].keys() == {"held", "held_lists"} and found["accuracy"]["k"].keys() == {"2", "4"}
    low, high = (found["accuracy"]["all"][name] for name in ("low", "high"))
    assert low <= found["accuracy"]["all"]["value"] <= high and 0 < found["calibration"]["ece"] < 0.5
    assert found["sensitivity"]["ok"] and found["sensitivity"]["order"] < 1e-5
    views = found["agreement"]["pairs_and_grades"]
    assert views["by_grades"] > 100 and not views["agree"], "comparisons are made of the grades here"
    assert all(isinstance(x["n"], int) for x in found["accuracy"]["source"].values())
    (dimension,) = found["agreement"]["grades"]
    assert dimension["across"] > 0.8
    page = (run / "workbench.html").read_text()
    assert "<svg" in page and not any(word in page for word in ("<script", "http", "src=", "@import", "url("))
    checks = {c["name"]: c["verdict"] for c in json.loads((run / "preflight.json").read_text())["checks"]}
    assert checks["template"] == checks["layout"] == checks["update"] == checks["preferences"] == "pass"


def test_correct_answers_give_a_best_of_n(place: Place, trained: Any) -> None:
    """Lists that are all right or all wrong count, too: they have no strict preference, and a run would refuse them."""
    run, _ = trained
    rows = correct(60, 9)
    whole = sum(len(set(row["good"])) == 1 for row in rows)
    data = place.data("correct", rows)
    out = place.run(*("reward", "best", "--data", data, *files(place, "held"), "--eval-only"), model=str(run / "model"))
    found = workbench(out)
    assert whole > 5 and found["counts"]["groups"] == 120
    points = {point["n"]: point for point in found["best_of_n"]["points"]}
    right = [sum(row["good"]) / 4 for row in rows]
    assert points[1]["model"]["value"] == pytest.approx(sum(right) / 60)
    assert points[4]["oracle"] == pytest.approx(sum(share > 0 for share in right) / 60)
    assert points[4]["model"]["value"] > points[4]["oracle"] - 0.05 > points[1]["model"]["value"]


def test_the_pad_token_is_named_before_training(place: Place, capsys: Any) -> None:
    data = ["--data", *files(place, "pairs"), "--steps", "1"]
    place.run("reward", "noted", *data, model=str(place.folder / "padded"))
    said = " ".join(capsys.readouterr().out.split())
    assert "the exported reward model pads with <unk> = 0" in said and "</s>, its pad token, can end" in said


# ------------------------------------------------------------------------------------------------ LoRA, dtype, resuming


def test_lora_learns_and_is_merged(place: Place) -> None:
    more = ("--lora-rank", "8", "--lr", "2e-2", "--steps", "16")
    run = place.run("reward", "lora", *flags(place, "pairs", "held"), *more)
    assert workbench(run)["accuracy"]["all"]["value"] > 0.9
    again = place.run(
        *("reward", "lora-again", "--data", *files(place, "held"), "--eval-only"), model=str(run / "model")
    )
    close(workbench(again), workbench(run))


def test_the_head_is_trained_in_float32_under_bfloat16(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TorchLearner] = []
    finish = TorchLearner.export
    monkeypatch.setattr(TorchLearner, "export", lambda self, folder: (seen.append(self), finish(self, folder))[1])
    run = place.run("reward", "bfloat16", *flags(place, "pairs", "held"), "--steps", "12", "--dtype", "bfloat16")
    (weight,) = (p for name, p in seen[-1].policy.model.named_parameters() if name == "score.weight")
    others = {p.dtype for name, p in seen[-1].policy.model.named_parameters() if name != "score.weight"}
    assert weight.dtype == torch.float32 and others == {torch.bfloat16}
    assert not torch.equal(weight, weight.bfloat16().float())
    assert workbench(run)["accuracy"]["all"]["value"] > 0.9


def test_a_run_that_was_stopped_and_resumed_is_one_that_was_not(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    more = [*flags(place, "lists", "held_lists"), "--epochs", "2", "--calibrate-scale", "--save-every", "3"]
    whole = place.run("reward", "whole", *more)
    step = TorchLearner.optim_step
    made: list[float] = []

    def stops(self: TorchLearner, lr: float) -> dict[str, float]:
        made.append(lr)
        if len(made) == 6:
            raise RuntimeError("killed")
        return step(self, lr)

    with monkeypatch.context() as patch:
        patch.setattr(TorchLearner, "optim_step", stops)
        with pytest.raises(RuntimeError, match="killed"):
            place.run("reward", "stopped", *more)
    assert not (place.folder / "stopped" / "model").exists()
    run = place.run("reward", "stopped", *more, "--resume")
    assert_same(run, whole)
    for name in ("workbench.json", "workbench.html"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()


# ----------------------------------------------------------------------------------------------------------- wrong uses


def refused(place: Place, *argv: str, command: str = "reward", model: str = "") -> None:
    cli.main(["--debug", *place.argv(command, "refused", *argv, "--overwrite", model=model)])


def test_a_reward_model_is_not_fine_tuned_as_a_language_model(place: Place, trained: Any, capsys: Any) -> None:
    chats = place.data("chats", [{"prompt": "Hi", "response": "Yo"}])
    argv = ["--data", chats, "--overwrite"]
    assert cli.main(place.argv("sft", "refused", *argv, model=str(trained[0] / "model"))) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "LlamaForSequenceClassification" in said and "espalier reward --eval-only" in said


def test_data_without_judgements_is_no_data_for_a_reward_model(place: Place) -> None:
    chats = place.data("unjudged", [{"prompt": "Hi", "response": "Yo"}])
    with pytest.raises(RowError, match=r"unjudged\.jsonl:1: .*no judgement.*expected a pair, a ranked list"):
        refused(place, "--data", chats)


def test_a_family_without_a_classification_class_is_refused_before_data_is_read(place: Place) -> None:
    with pytest.raises(ModelError, match=r"GraniteForCausalLM.*cannot be a reward model.*Train another family"):
        refused(place, "--data", str(place.folder / "missing.jsonl"), model=place.save("granite"))


def test_a_model_without_a_head_is_not_judged(place: Place) -> None:
    with pytest.raises(ConfigError, match=r"no scalar head.*expected a model that `espalier reward` trained"):
        refused(place, "--data", *files(place, "held"), "--eval-only")


POINTWISE, MANY = ("--objective", "pointwise"), ("--score-weights", "many=1")


@pytest.mark.parametrize(
    ("data", "more", "why"),
    [
        ("two", POINTWISE, "about many, few, and this run has a single score; pass --dimensions many few"),
        (
            "two",
            (*POINTWISE, "--dimensions", "few", "many"),
            "got few, many, but the data's scores are about many, few",
        ),
        ("two", (*MANY, "--dimensions", "kind", "few"), "got kind, few, but the data's scores are about many, few"),
        ("two", (*MANY, "--pointwise-coef", "1"), "pass --dimensions many few"),
        ("lists", (*POINTWISE, "--dimensions", "a", "b"), "got a, b, but the data's scores are about score"),
        ("pairs", ("--pointwise-coef", "1"), "pointwise_coef is given, but no response of the data has a score"),
    ],
)
def test_dimensions_are_held_against_the_data(place: Place, data: str, more: tuple[str, ...], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        refused(place, "--data", *files(place, data), *more)


def test_a_single_name_is_given_to_a_nameless_score(place: Place) -> None:
    run = place.run(
        "reward",
        "named",
        *flags(place, "lists", "held_lists"),
        *POINTWISE,
        *("--dimensions", "many"),
        *("--steps", "1"),
    )
    config = json.loads((run / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "many"}


def test_grades_outside_the_scale_are_found_at_the_start(place: Place) -> None:
    rows = lists(40, 6)
    rows[33]["scores"][2] = 12
    data = place.data("outside", rows)
    for more in (POINTWISE, ("--pointwise-coef", "1")):
        with pytest.raises(DataError, match=r"outside\.jsonl:34: a response has the grade 12, expected 1 to 10"):
            refused(place, "--data", data, *more)
    place.run("reward", "wide", "--data", data, *POINTWISE, "--grade-high", "12", "--steps", "1")
    place.run("reward", "uncared", "--data", data, "--steps", "1")  # where nothing learns from grades


def test_a_misspelt_score_weight_is_refused(place: Place) -> None:
    with pytest.raises(RowError, match=r"got mny; expected one of many, few\. Did you mean many\?"):
        refused(place, "--data", *files(place, "two"), "--score-weights", "mny=1")


def test_rows_without_grades_stand_beside_rows_with_them(place: Place) -> None:
    """Comparisons are learned from all, the pointwise term from those that have grades."""
    ranked = [{"prompt": r["prompt"], "responses": [r["chosen"], r["rejected"]], "ranks": [1, 2]} for r in pairs(40, 7)]
    data = place.data("mixed", [row for two in zip(ranked, lists(40, 8), strict=True) for row in two])
    run = place.run(
        *("reward", "mixed", "--data", data, *files(place, "pairs"), "--eval-data", *files(place, "held")),
        *("--pointwise-coef", "0.5", "--steps", "16"), checks=True,
    )  # fmt: skip
    made = steps_of(run)
    assert all(math.isfinite(line["pointwise"]) for line in made) and made[-1]["pointwise"] < 0.5 * made[0]["pointwise"]
    assert workbench(run)["accuracy"]["all"]["value"] > 0.9
