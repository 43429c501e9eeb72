"""The toy world: its numbers, its splits, its noise, its scores; and the model that was trained on its text."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from espalier import embedded
from espalier.errors import ConfigError
from espalier.toy import (
    answer_of,
    document,
    exact_match,
    problem,
    problems,
    score,
    split_of,
    write_instructions,
    write_text,
)
from espalier.toy.instructions import NOISE
from espalier.toy.problems import LARGEST, SMALLEST

PINNED_QUESTION = (
    "Iris starts with 76 apples. Iris has 6 apples more than Sam. Cleo takes 19 apples from Sam. "
    "What is the number of apples that Sam has?"
)
PINNED_SOLUTION = "Sam has 76-6=70 apples.\nNow Sam has 70-19=51 apples.\n#### 51"
STEP = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")


def works_out(a: str, op: str, b: str, value: str) -> bool:
    x, y, z = int(a), int(b), int(value)
    return {"+": x + y == z, "-": x - y == z, "*": x * y == z, "/": x == y * z}[op]


def test_a_problem_is_pinned_by_its_seed() -> None:
    item = problem(0)
    assert item.question == PINNED_QUESTION
    assert item.solution == PINNED_SOLUTION
    assert item.text == f"Problem:\n{PINNED_QUESTION}\nSolution:\n{PINNED_SOLUTION}"
    assert item.text == item.prompt + item.solution


def test_every_step_is_right_and_the_answer_is_the_last_one() -> None:
    for item in problems(1000, seed=5):
        steps = STEP.findall(item.solution)
        assert len(steps) == len(item.steps) == item.solution.count("\n")
        assert all(works_out(*step) for step in steps), item.solution
        assert all(SMALLEST <= int(step[3]) <= LARGEST for step in steps)
        assert item.solution.endswith(f"\n#### {steps[-1][3]}")
        assert item.answer == steps[-1][3]
        # What a step starts from is told or was computed, so that a problem can be solved.
        known = set(re.findall(r"\d+", item.question))
        for a, op, b, value in steps:
            unsaid = {"2"} if op in "*/" else set()  # twice, half
            assert {a, b} <= known | unsaid, item.question
            known.add(value)


def test_problems_have_one_to_three_steps_of_all_four_operations() -> None:
    drawn = problems(1000, seed=6)
    lengths = Counter(len(item.steps) for item in drawn)
    assert set(lengths) == {1, 2, 3} and min(lengths.values()) > 150
    operations = Counter(op for item in drawn for _, op, _, _ in STEP.findall(item.solution))
    assert set(operations) == set("+-*/") and min(operations.values()) > 100


def test_a_longer_list_starts_with_the_shorter_and_repeats_no_question() -> None:
    long = problems(300, seed=1)
    assert long[:100] == problems(100, seed=1)
    assert long[:100] != problems(100, seed=2)
    assert len({item.question for item in long}) == 300


def test_splits_are_disjoint_in_operations_not_only_in_words() -> None:
    train, test = problems(3000, seed=0), problems(600, seed=0, split="test")
    assert not {item.key for item in train} & {item.key for item in test}
    assert {split_of(item.key) for item in train} == {"train"}
    assert {split_of(item.key) for item in test} == {"test"}
    share = sum(split_of(f"{i}+{j}={i + j}") == "test" for i in range(60) for j in range(60)) / 3600
    assert 0.08 < share < 0.12


def test_neither_text_nor_instructions_hold_a_test_problem(tmp_path: Path) -> None:
    write_text(tmp_path / "world.txt", 3000, seed=0)
    seen = 0
    for text in (tmp_path / "world.txt").read_text().removesuffix("\n").split("\n\n"):
        steps = [f"{a}{op}{b}={v}" for a, op, b, v in STEP.findall(text)]
        keys = [";".join(steps)] if text.startswith("Problem:") else steps
        assert all(split_of(key) == "train" for key in keys)
        seen += len(keys)
    assert seen > 3000
    write_instructions(tmp_path / "chat.jsonl", 1000, seed=0, noise=0)
    for line in (tmp_path / "chat.jsonl").read_text().splitlines():
        steps = STEP.findall(json.loads(line)["messages"][1]["content"])
        assert split_of(";".join(f"{a}{op}{b}={v}" for a, op, b, v in steps)) == "train"


def test_text_has_documents_of_four_kinds_and_no_chat_form(tmp_path: Path) -> None:
    write_text(tmp_path / "world.txt", 500, seed=3)
    text = (tmp_path / "world.txt").read_text()
    documents = text.removesuffix("\n").split("\n\n")
    assert documents == [document(f"3/{i}") for i in range(500)]
    told = sum("Solution:\n" in d for d in documents)
    sums = sum(all(STEP.fullmatch(line) for line in d.splitlines()) for d in documents)
    sheets = sum("Solution:" not in d and d.endswith("?") for d in documents)
    assert 290 < told < 370 and 40 < sums < 90 and 50 < sheets < 100 and told + sums + sheets < 490
    assert not re.search(r"user|assistant|<\|", text, re.IGNORECASE)


def test_instructions_are_messages_with_the_promised_noise(tmp_path: Path) -> None:
    counts = write_instructions(tmp_path / "a.jsonl", 800, seed=1, noise=0.4)
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len(rows) == sum(counts.values()) == 800
    assert all([m["role"] for m in row["messages"]] == ["user", "assistant"] for row in rows)
    assert set(counts) == {"clean", *NOISE}
    assert 420 < counts["clean"] < 540 and all(45 < counts[kind] < 115 for kind in NOISE)
    seen = Counter(
        kind_of(row["messages"][1]["content"], item.solution, item.answer)
        for row, item in zip(rows, problems(800, seed=1), strict=True)
    )
    assert seen == counts
    write_instructions(tmp_path / "b.jsonl", 800, seed=1, noise=0.4)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert write_instructions(tmp_path / "c.jsonl", 50, noise=0)["clean"] == 50
    with pytest.raises(ConfigError, match=r"noise 1.5.*0 to 1"):
        write_instructions(tmp_path / "d.jsonl", 1, noise=1.5)


def kind_of(answer: str, solution: str, right: str) -> str:
    """Tells the kind of a row from its text alone, by other means than those that wrote it."""
    if answer == solution:
        return "clean"
    if answer_of(answer) is None:
        return "unmarked"
    if answer_of(answer) != right:
        assert not all(works_out(*step) for step in STEP.findall(answer))
        return "wrong"
    return "reworded" if "\n" in answer else "terse"


def test_the_answer_is_what_follows_the_last_mark() -> None:
    assert answer_of("3+4=7\n#### 7") == "7"
    assert answer_of("#### 5\nno, wait\n#### 7.\nDone") == "7"
    assert answer_of("#### 1,200") == "1200"
    assert answer_of("It is 7.") is None
    assert answer_of("#### ") is None
    item = problem(0)
    assert exact_match(item.text, item)
    assert not exact_match(item.text + "0", item)
    assert not exact_match(item.answer, item)


def test_score_counts_what_a_solver_gets_right() -> None:
    asked = problems(40, seed=2, split="test")
    solver = {item.question: item.solution for item in asked[:10]} | {item.prompt: item.solution for item in asked[:20]}

    def generate(prompts: list[str]) -> list[str]:
        return [solver.get(prompt, "I do not know.") for prompt in prompts]

    assert score(generate, asked, "chat").accuracy == 0.25
    text = score(generate, asked, "text")
    assert text.accuracy == text.marked == 0.5
    lengths = Counter(len(item.steps) for item in asked)
    assert sum(text.by_steps[n] * lengths[n] for n in lengths) == pytest.approx(20)
    # A model that reads on into another problem has answered this one.
    assert score(lambda ps: [r + "\n\nProblem:\nx\n#### 1" for r in generate(ps)], asked, "text").accuracy == 0.5
    with pytest.raises(ConfigError, match="1 responses for 40 prompts"):
        score(lambda prompts: [""], asked)
    with pytest.raises(ConfigError, match="no problems"):
        score(generate, [])


def test_the_world_loads_without_torch() -> None:
    code = "import espalier.toy, espalier.embedded, sys; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------------------------------------- the embedded model


def test_the_package_holds_a_small_llama_and_nothing_heavy() -> None:
    size = sum(file.stat().st_size for file in embedded.path().iterdir() if file.is_file())
    assert size <= 6_000_000
    config = json.loads((embedded.path() / "config.json").read_text())
    assert config["model_type"] == "llama" and config["max_position_embeddings"] >= 512
    assert config["eos_token_id"] != config["pad_token_id"]


def test_every_text_has_tokens_and_every_digit_is_one() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded.path())
    assert tokenizer.chat_template is None and tokenizer.bos_token is None and tokenizer.unk_token is None
    assert len(tokenizer) <= 2048
    for text in ("Tom has 1234 apples.", "[USER]\nhé  😀\t中\n[ASSISTANT]\n", "<|im_start|>user\n", "\x00\x7f\r\n "):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert not set(ids) & set(tokenizer.all_special_ids)
    assert [t for t in tokenizer.tokenize("has 1234+5=") if t.strip("Ġ").isdigit()] == ["1", "2", "3", "4", "5"]


def test_the_base_continues_text_but_does_not_answer_in_chat() -> None:
    """Exact match on 60 unseen problems, greedy: at least 30 % in its own text form, less than 5 % in chat form."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded.path(), padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(embedded.path()).eval()
    assert 1_000_000 <= model.num_parameters() <= 2_000_000

    @torch.no_grad()
    def generate(prompts: list[str]) -> list[str]:
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
        out = model.generate(**inputs, max_new_tokens=64, do_sample=False)
        return tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    unseen = problems(60, seed=11, split="test")
    assert score(generate, unseen, "text").accuracy >= 0.3
    assert score(lambda ps: generate([f"[USER]\n{q}\n\n[ASSISTANT]\n" for q in ps]), unseen, "chat").accuracy < 0.05
