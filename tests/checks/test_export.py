"""The check of the export: what a run wrote is compared with what it trained, and each fault is named."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from espalier.checks import export as check
from espalier.checks import exported
from espalier.checks.exported import Exported
from espalier.commands import main as cli
from espalier.errors import CheckError
from espalier.models import adapters, heads
from espalier.models import export as exports
from scoring import Place, lists, pairs, solutions
from tiny import TEMPLATE, tiny_model, tiny_tokenizer

ROLES = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
STEPS = ("--steps", "2", "--lr", "3e-2")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("exports"))


def chats(place: Place) -> str:
    rows = pairs(24, seed=1)
    said = [[{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["chosen"]}] for r in rows]
    return place.data("chats", [{"messages": turns} for turns in said])


Ran = Callable[..., str]


@pytest.fixture
def ran(place: Place, capsys: pytest.CaptureFixture[str]) -> Ran:
    """What the check says of a run that ends well."""

    def run(command: str, out: str, *more: str, model: str = "") -> str:
        place.run(command, out, *STEPS, *more, model=model)
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("export: ")]
        return line

    return run


def stopped(place: Place, command: str, out: str, *more: str, model: str = "") -> str:
    """What the check says of a run that it must stop; the command ends with code 2."""
    argv = place.argv(command, out, *STEPS, *more, model=model)
    with pytest.raises(CheckError) as error:
        cli.main(["--debug", *argv])
    said = str(error.value)
    assert said.startswith("export: ") and f"{place.folder / out / 'model'}, and is not what was trained" in said
    return said


def edited(monkeypatch: pytest.MonkeyPatch, edit: Callable[[Path], None]) -> None:
    """Let something happen to the folder before it is loaded."""
    load = Exported.load

    def damaged(session: Any, folder: Path) -> Exported:
        edit(folder)
        return load(session, folder)

    monkeypatch.setattr(check, "Exported", SimpleNamespace(load=damaged))


def rewritten(name: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """An edit of a JSON file."""

    def edit(folder: Path) -> None:
        fields = json.loads((folder / name).read_text())
        change(fields)
        (folder / name).write_text(json.dumps(fields))

    return edit


def reweighed(change: Callable[[dict[str, torch.Tensor]], None], name: str = "model") -> Callable[[Path], None]:
    """An edit of the weights."""

    def edit(folder: Path) -> None:
        weights = load_file(folder / f"{name}.safetensors")
        change(weights)
        save_file(weights, folder / f"{name}.safetensors", metadata={"format": "pt"})

    return edit


def in_bfloat16(place: Place) -> str:
    folder = place.folder / "stored_in_bfloat16"
    if not folder.exists():
        place.save("llama", folder.name)
        tiny_model("llama").to(torch.bfloat16).save_pretrained(folder)
    return str(folder)


# -------------------------------------------------------------------------------------------------------- healthy runs


@pytest.mark.parametrize("more", [(), ("--dtype", "bfloat16")])
def test_runs_of_all_kinds_pass(place: Place, ran: Ran, more: tuple[str, ...]) -> None:
    tag = "-".join(("healthy", *more)).replace("--", "")
    judged = place.data("pairs", pairs(24, seed=2))
    steps = place.data("steps", solutions(24, seed=3))
    runs = {
        "sft": (chats(place), ()),
        "dpo": (judged, ()),
        "reward": (judged, ("--calibrate-scale",)),
        "prm": (steps, ()),
    }
    for command, (data, flags) in runs.items():
        said = ran(command, f"{tag}-{command}", "--data", data, *flags, *more)
        assert said.startswith("export: pass") and "loaded by transformers alone" in said
        if command == "reward":
            assert "row 1 scores the same as plain text" in said
        if command in ("sft", "dpo"):
            assert "stops at " in said


def test_a_reward_model_whose_answers_end_at_the_next_role_passes(place: Place, ran: Ran) -> None:
    """The template writes nothing behind the last answer: what a user's class reads ends there, too."""
    roles = ["<|user|>", "<|assistant|>"]
    tokenizer = tiny_tokenizer(template=ROLES)
    tokenizer.add_special_tokens({"additional_special_tokens": roles})
    model = tiny_model("llama", vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = [2, tokenizer.convert_tokens_to_ids("<|user|>")]
    folder = place.folder / "roles"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    said = ran("reward", "by-role", "--data", place.data("pairs", pairs(24, seed=2)), model=str(folder))
    assert said.startswith("export: pass") and "row 1 scores the same as plain text" in said


def test_adapters_pass_alone_and_merged(place: Place, ran: Ran) -> None:
    lora = ("--data", chats(place), "--lora-rank", "4", "--lora-alpha", "32")
    for out, flags in (("alone", ("--export", "adapter")), ("merged", ()), ("rslora", ("--rslora",))):
        assert ran("sft", f"adapter-{out}", *lora, *flags).startswith("export: pass")


def test_sources_in_bfloat16_pass(place: Place, ran: Ran) -> None:
    model, data = in_bfloat16(place), place.data("pairs", pairs(24, seed=2))
    for command, flags in (("dpo", ()), ("reward", ()), ("dpo", ("--dtype", "bfloat16"))):
        out = f"bfloat16-{command}{len(flags)}"
        assert ran(command, out, "--data", data, *flags, model=model).startswith("export: pass")


def with_template(place: Place, name: str, template: str) -> str:
    """A tiny model whose tokenizer has a template."""
    folder = Path(place.save("llama", name))
    tiny_tokenizer(template=template).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(template)
    return str(folder)


SAME = "row 1 scores the same as plain text"


def test_a_reward_model_is_read_as_its_template_was_trained(place: Place, ran: Ran) -> None:
    """The date is the fixed one, and names are those that the run and the row give."""
    rows = pairs(24, seed=2)
    data = place.data("pairs", rows)
    dated = with_template(place, "dated", "{{ strftime_now('%d %b %Y') }}" + TEMPLATE)
    assert SAME in ran("reward", "dated-run", "--data", data, model=dated)
    assert "the date was fixed to" in (place.folder / "dated-run" / "model" / "README.md").read_text()
    toned = with_template(place, "toned", "{% if tone is defined %}{{ tone }}{% endif %}" + TEMPLATE)
    assert SAME in ran("reward", "toned-run", "--data", data, "--template-args", "tone=kind", model=toned)
    given = place.data("given", [{**row, "chat_template_kwargs": {"tone": "calm"}} for row in rows])
    assert SAME in ran("reward", "given-run", "--data", given, model=toned)


def test_a_reward_model_is_read_with_turns_as_they_were_merged(place: Place, ran: Ran) -> None:
    rows = []
    for row in pairs(24, seed=2):
        prompt = [{"role": role, "content": f"{role} {row['prompt']}"} for role in ("system", "user", "user")]
        rows.append({**row, "prompt": prompt})
    data = place.data("merged", rows)
    assert SAME in ran("reward", "merged-run", "--data", data, "--merge-system", "--merge-turns")


def test_prompts_that_open_reasoning_do_not_stop_a_reward_model(place: Place, ran: Ran) -> None:
    template = TEMPLATE.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\n<think>\n'")
    thinks = with_template(place, "thinks", template)
    rows = pairs(24, seed=2)
    for row in rows:
        row.update(chosen=f"<think>so</think>{row['chosen']}", rejected=f"<think>so</think>{row['rejected']}")
    said = ran("reward", "thinks-run", "--data", place.data("thinking", rows), model=thinks)
    assert said.startswith("export: pass")


def test_a_first_response_that_was_dropped_is_not_read(place: Place, ran: Ran) -> None:
    rows = lists(24, seed=4)
    for row in rows:
        row["scores"][0] = None
    assert SAME in ran("reward", "first-dropped", "--data", place.data("dropped", rows))


def test_what_a_trained_question_ends_in_is_no_stop_token(place: Place, ran: Ran) -> None:
    rows = []
    for row in pairs(24, seed=1):
        turns = [("user", row["prompt"], 0.0), ("assistant", row["chosen"], 1.0), ("user", row["rejected"], 1.0)]
        rows.append({"messages": [{"role": r, "content": text, "weight": weight} for r, text, weight in turns]})
    assert ran("sft", "asked-last", "--data", place.data("asked", rows)).startswith("export: pass")


# -------------------------------------------------------------------------------------------------------------- faults


def test_rounded_weights_are_seen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def rounded(weights: dict[str, torch.Tensor]) -> None:
        for name, tensor in weights.items():
            weights[name] = tensor.bfloat16().float()

    edited(monkeypatch, reweighed(rounded))
    assert "nats a token from the live model, expected at most 1.0e-04" in stopped(
        place, "sft", "rounded", "--data", chats(place)
    )


def test_an_export_that_was_not_trained_is_seen_in_bfloat16(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    start = load_file(Path(in_bfloat16(place)) / "model.safetensors")
    edited(monkeypatch, reweighed(lambda weights: weights.update(start)))
    model, data = in_bfloat16(place), place.data("pairs", pairs(24, seed=2))
    assert "from the live model" in stopped(place, "dpo", "start-again", "--data", data, model=model)


def test_a_merge_without_its_scale_is_seen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    delta = adapters._delta
    monkeypatch.setattr(adapters, "_delta", lambda layer: delta(layer) / layer.scaling[adapters.ADAPTER])
    lora = ("--data", chats(place), "--lora-rank", "4", "--lora-alpha", "32")
    assert "nats a token from the live model" in stopped(place, "sft", "without-scale", *lora)


def test_an_adapter_without_what_it_learned_is_seen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def zeroed(weights: dict[str, torch.Tensor]) -> None:
        for name, tensor in weights.items():
            if "lora_B" in name:
                weights[name] = tensor * 0

    edited(monkeypatch, reweighed(zeroed, "adapter_model"))
    lora = ("--data", chats(place), "--lora-rank", "4", "--export", "adapter")
    assert "nats a token from the live model" in stopped(place, "sft", "zeroed", *lora)


def test_a_tied_head_that_is_untied_is_seen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    model = place.save("smollm3")
    edited(monkeypatch, rewritten("config.json", lambda config: config.update(tie_word_embeddings=False)))
    said = stopped(place, "sft", "untied", "--data", chats(place), model=model)
    assert "transformers cannot load it" in said and "lm_head.weight" in said


def test_a_weight_that_is_missing_is_seen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    edited(monkeypatch, reweighed(lambda weights: weights.pop("model.norm.weight")))
    assert "1 missing keys, such as model.norm.weight" in stopped(place, "sft", "missing", "--data", chats(place))


def test_a_stop_token_that_is_lost_is_seen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    edited(monkeypatch, rewritten("generation_config.json", lambda settings: settings.update(eos_token_id=2)))
    said = stopped(place, "sft", "stopless", "--data", chats(place))
    assert "its stop ids are [2], without [4], which answers end in" in said


def test_a_chat_template_that_is_lost_or_another_is_seen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    edited(monkeypatch, lambda folder: (folder / "chat_template.jinja").unlink())
    assert "its chat template writes row 1 in another way (ValueError" in stopped(
        place, "sft", "no-template", "--data", chats(place)
    )
    other = TEMPLATE.replace("m['content']", "m['content'] | trim ~ '.'")
    edited(monkeypatch, lambda folder: (folder / "chat_template.jinja").write_text(other) and None)
    assert "its chat template writes row 1 in another way" in stopped(
        place, "sft", "other-template", "--data", chats(place)
    )


def test_tokens_under_other_numbers_are_seen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(fields: dict[str, Any]) -> None:
        vocabulary = fields["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]

    edited(monkeypatch, rewritten("tokenizer.json", swapped))
    assert "numbers 2 tokens in another way" in stopped(place, "sft", "swapped", "--data", chats(place))


def test_a_pad_token_that_ends_answers_is_seen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    edited(monkeypatch, rewritten("config.json", lambda config: config.update(pad_token_id=4)))
    data = place.data("pairs", pairs(24, seed=2))
    said = stopped(place, "reward", "padded", "--data", data)
    assert "its pad token" in said and "ends answers" in said and "expected one, in config and tokenizer" in said


def test_a_scale_that_is_folded_twice_is_seen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    folded = heads.folded
    monkeypatch.setattr(heads, "folded", lambda model, weight: folded(model, folded(model, weight)))
    monkeypatch.setattr(exports.heads, "folded", heads.folded)
    data = place.data("lists", lists(24, seed=4))
    assert "score from the live model" in stopped(place, "reward", "twice", "--data", data, "--calibrate-scale")


@pytest.mark.parametrize("command", ["reward", "prm"])
def test_a_bias_that_is_missing_is_seen(place: Place, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    def dropped(config: dict[str, Any]) -> None:
        config["espalier_reward_bias"] = [0.0]

    def moved(config: dict[str, Any]) -> None:
        config["espalier_reward_bias"] = [config["espalier_reward_bias"][0] + 0.5]

    rows = pairs(24, seed=2) if command == "reward" else solutions(24, seed=3)
    edited(monkeypatch, rewritten("config.json", dropped if command == "reward" else moved))
    data = place.data(f"for-{command}", rows)
    assert "score from the live model" in stopped(place, command, f"biasless-{command}", "--data", data)


def test_a_template_that_is_read_elsewhere_is_seen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizer's template gets a tail after the model was trained to be read at the stop token."""
    edited(monkeypatch, lambda folder: (folder / "chat_template.jinja").write_text(TEMPLATE + "!") and None)
    data = place.data("pairs", pairs(24, seed=2))
    assert "row 1 as plain text is not what was scored" in stopped(place, "reward", "elsewhere", "--data", data)


# ------------------------------------------------------------------------------------------------------------- skipped


def test_no_room_for_a_second_copy_is_said(place: Place, ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exported, "free_memory", lambda: 1000.0)
    said = ran("sft", "small", "--data", chats(place))
    assert said.startswith("export: skipped: a second copy needs") and said.endswith("are free")
