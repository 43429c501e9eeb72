"""Every check passes on what is right and fails on the fault it is there for."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from espalier.checks import data as preflight
from espalier.checks.model import layout, loss, update
from espalier.checks.table import Check, run, settle
from espalier.data.render.renderer import Renderer
from espalier.data.store.stats import StoreStats
from espalier.errors import CheckError, ConfigError
from espalier.models.attention import interface as attention
from espalier.models.policy import Policy
from espalier.types import Chat, Message, Origin, Sample
from tiny import tiny_model, tiny_tokenizer


def chat(question: str, answer: str, **more: Any) -> Chat:
    return Chat((Message("user", question), Message("assistant", answer, **more)), origin=Origin("toy", 1))


def sample(tokens: list[int], prompt: int) -> Sample:
    s = Sample()
    s.append(tokens[:prompt], trained=False)
    s.append(tokens[prompt:], trained=True)
    return s


GOOD = StoreStats(
    rows=100, kept=100, samples=100, tokens=5000, trained=2000, trained_by_role={"assistant": 2000}, whole=100,
    stopped=100, bos_1=100,
)  # fmt: skip


@pytest.mark.parametrize(
    ("check", "faulty", "verdict"),
    [
        (preflight.rows, {"kept": 90}, "fail"),
        (preflight.rows, {"truncated": 11}, "warn"),
        (lambda s: preflight.trained([("toy", s[0])]), {"trained": 0}, "fail"),
        (preflight.stop, {"stopped": 98}, "fail"),
        (lambda s: preflight.bos(s, 1), {"bos_1": 99, "bos_0": 1}, "fail"),
        (lambda s: preflight.bos(s, 1), {"bos_1": 99, "bos_more": 1}, "fail"),
    ],
)
def test_counts_that_are_off_are_seen(check: Any, faulty: dict[str, Any], verdict: str) -> None:
    assert check([GOOD]).verdict == "pass"
    found = check([replace(GOOD, **faulty)])
    assert found.verdict == verdict and found.way_out


def test_99_of_100_stop_tokens_are_enough() -> None:
    assert preflight.stop([replace(GOOD, stopped=99)]).verdict == "pass"


def test_the_mask_check_sees_a_turn_that_is_not_trained() -> None:
    tokenizer = tiny_tokenizer()
    renderer = Renderer(tokenizer)
    rows = [chat("a b", "c d e"), chat("b", "d")]
    decode = tokenizer.decode
    assert preflight.mask(rows, renderer.render, decode, "assistant").verdict == "pass"

    def shifted(example: Any) -> list[Any]:
        """The mask one turn off: the question is trained instead of the answer."""
        found = renderer.render(example)
        for r in found:
            r.sample.mask = [not m for m in r.sample.mask]
        return found

    wrong = preflight.mask(rows, shifted, decode, "assistant")
    assert wrong.verdict == "fail" and "toy:1: 'c d e' is not trained" in wrong.way_out

    def everything(example: Any) -> list[Any]:
        found = renderer.render(example)
        for r in found:
            r.sample.mask = [True] * len(r.sample)
        return found

    wrong = preflight.mask(rows, everything, decode, "assistant")
    assert wrong.verdict == "fail" and "toy:1: 'a b' is trained" in wrong.way_out
    assert preflight.mask(rows, everything, decode, "all").verdict == "pass"


def test_the_template_check_sees_rows_that_render_to_something_new() -> None:
    renderer = Renderer(tiny_tokenizer())
    rows = [chat("a", "b")]
    stored = [[r.sample for r in renderer.render(rows[0])]]
    assert preflight.template(rows, renderer.render, stored).verdict == "pass"
    stored[0][0].tokens = [*stored[0][0].tokens[:-1], 5]
    assert preflight.template(rows, renderer.render, stored).verdict == "fail"


@pytest.mark.parametrize("kind", ["forest", "chain", "padded"])
def test_the_layout_check_passes_in_every_layout(kind: Any) -> None:
    groups = [[sample(list(range(5, 40)), 20), sample([*range(5, 25), 99, 98, 97], 20)], [sample([7, 8, 9, 10], 2)]]
    model = tiny_model("llama").train()
    found = layout(Policy(model, kind), groups, torch.float32)
    assert found.verdict == "pass" and kind in found.value


def test_the_layout_check_sees_attention_to_a_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed without the forest, a row attends to the rows before it."""
    policy = Policy(tiny_model("llama").train(), "forest")

    def leaky(module: Any, query: Any, key: Any, value: Any, mask: Any, *, scaling: float, **more: Any) -> Any:
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2), None

    attention.AttentionInterface.register(attention.NAME, leaky)
    try:
        groups = [[sample([7, 8, 9, 10, 11], 2)], [sample([20, 21, 22, 23], 2)]]
        assert layout(policy, groups, torch.float32).verdict == "fail"
    finally:
        attention.register()


def test_the_layout_check_sees_a_head_that_does_more() -> None:
    policy = Policy(tiny_model("gemma2").train(), "forest")
    assert layout(policy, [[sample([7, 8, 9, 10, 11], 2)]], torch.float32).verdict == "pass"
    policy.head = replace(policy.head, softcap=None)
    assert layout(policy, [[sample([7, 8, 9, 10, 11], 2)]], torch.float32).verdict == "fail"


def test_the_layout_check_leaves_dropout_aside() -> None:
    model = tiny_model("gpt2", attn_pdrop=0.5).train()
    policy = Policy(model, "forest", dropout=True)
    assert layout(policy, [[sample(list(range(5, 40)), 20)]], torch.float32).verdict == "pass"
    assert model.training


def test_losses_that_are_not_finite_or_worse_than_guessing_are_seen() -> None:
    assert loss(4.8, math.log(128)).verdict == "pass"
    assert loss(float("nan"), math.log(128)).verdict == "fail"
    assert loss(10.0, math.log(128)).verdict == "warn"  # a uniform guess is ln 128 = 4.85


def test_a_rate_that_moves_nothing_is_seen() -> None:
    assert update({"float32": 1.0, "bfloat16": 0.3}).verdict == "pass"
    assert update({"float32": 0.1, "bfloat16": 0.0}).verdict == "fail"
    assert "masters" in update({"float32": 1.0, "bfloat16": 0.0}).way_out


def test_a_failed_check_stops_with_cause_and_way_out(tmp_path: Path) -> None:
    checks = [
        Check("rows", "1 read", "some", "pass"),
        Check("stop", "10 %", ">= 99 %", "fail", "Look at the template."),
    ]
    with pytest.raises(CheckError, match=r"stop: 10 %, expected >= 99 %\. Look at the template\. .*--skip-checks stop"):
        settle(checks, tmp_path / "preflight.json")
    written = json.loads((tmp_path / "preflight.json").read_text())["checks"]
    assert [c["verdict"] for c in written] == ["pass", "fail"]


def test_a_skipped_check_does_not_run_and_says_so() -> None:
    def never() -> Check:
        raise AssertionError

    (found,) = run((("layout", never),), ("layout",))
    assert found.verdict == "skipped"
    with pytest.raises(ConfigError, match=r"got layuot, expected some of rows, trained"):
        run((), ("layuot",))
