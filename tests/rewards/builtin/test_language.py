"""The reward of a response's language, also measured on real texts."""

import gzip
import json
from pathlib import Path

import pytest

from espalier.errors import ConfigError
from espalier.rewards.builtin.language import LANGUAGE, LANGUAGES, is_language, scripts
from graded import grade


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "She sells sea shells by the sea shore, and he watches."),
        ("de", "Sie geht heute nicht in die Schule, weil sie krank ist."),
        ("fr", "Elle ne va pas à l'école aujourd'hui parce qu'elle est malade."),
        ("vi", "Hôm nay cô ấy không đi học vì bị ốm."),
        ("ru", "Сегодня она не идёт в школу, потому что заболела."),
        ("ar", "لم تذهب إلى المدرسة اليوم لأنها مريضة."),
        ("hi", "वह आज स्कूल नहीं जा रही है क्योंकि वह बीमार है।"),
        ("zh", "她今天不去上学"),
        ("ja", "彼女は今日学校に行きません"),
        ("ko", "그녀는 오늘 학교에 가지 않는다"),
        ("th", "วันนี้เธอไม่ไปโรงเรียน"),
        ("el", "Σήμερα δεν πάει σχολείο"),
    ],
)
def test_a_text_is_in_its_own_language_and_in_no_other(language: str, text: str) -> None:
    assert [code for code in LANGUAGES if is_language(text, code)] == [language]


def test_letters_of_other_scripts_lower_the_score() -> None:
    mixed = "The boy walks his dog through the 公园 every 早上."  # 8 words of 12 units
    assert scripts(mixed) == {"LATIN": 8, "CJK": 4}
    assert grade(LANGUAGE, mixed, facts={"language": "en"}) == pytest.approx(8 / 12 / 0.8)
    assert grade(LANGUAGE, mixed, language="zh") == 0.0


def test_code_is_left_out() -> None:
    text = "代码如下:\n```python\nfor item in some_list: print(item)\n```\n"
    assert grade(LANGUAGE, text, language="zh") == 1.0
    assert grade(LANGUAGE, "```python\nprint(1)\n```", language="zh") == "invalid"


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(ConfigError, match="'english'; expected one of"):
        LANGUAGE.with_defaults({"language": "english"})
    with pytest.raises(ValueError, match="'xx'"):
        grade(LANGUAGE, "abc", facts={"language": "xx"})


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "column", "language", "rows", "full"),
    [
        ("verifiable/cmath_zh.jsonl.gz", "question", "zh", 600, 600),
        ("verifiable/gsm8k_train.jsonl.gz", "question", "en", 1000, 1000),
    ],
)
def test_questions_are_in_their_language(
    shared: Path, name: str, column: str, language: str, rows: int, full: int
) -> None:
    with gzip.open(shared / "data" / name, "rt", encoding="utf-8") as file:
        texts = [json.loads(line)[column] for line in file][:rows]
    assert sum(grade(LANGUAGE, text, language=language) == 1.0 for text in texts) == full
