"""The check of content that looks like control tokens."""

from espalier.checks.controls import controls
from espalier.data.store.stats import StoreStats


def found(counts, added=(), kept=1000):
    return controls([("a", StoreStats(kept=kept, controls=counts))], added)


def test_verdicts() -> None:
    assert found({}).verdict == "pass"
    assert found({"prompts hold <|im_end|>": 1}).verdict == "pass"
    for counts in (
        {"prompts hold <|im_end|>": 11},
        {"answers end in <|im_end|>": 1},
        {"texts hold <|im_start|>": 1},
    ):
        assert found(counts).verdict == "warn", counts
    warned = found({"answers end in <|im_end|>": 4, "prompts hold <|im_start|>": 4})
    assert warned.value == "a: 4 answers end in <|im_end|>; a: 4 prompts hold <|im_start|>"
    assert "--parse-control completion prompt" in warned.way_out
    assert "--parse-control" not in found({"reasoning hold <|im_end|>": 999}).way_out


def test_added_tokens_that_answers_hold_as_text_end_the_run() -> None:
    failed = found({"completions hold <think>": 23}, ("<think>",))
    assert failed.verdict == "fail" and "23 completions of a hold <think>" in failed.way_out
    assert found({"prompts hold <think>": 1}, ("<think>",)).verdict == "pass"
