"""Every language says everything."""

from __future__ import annotations

import dataclasses
import string

import pytest

from qwen_agent.types import StopReason
from qwen_agent.web.texts import CHINESE, ENGLISH, JAPANESE, LANGUAGES, Texts, preferred


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("texts", [CHINESE, JAPANESE], ids=lambda texts: texts.code)
def test_the_same_blanks_are_filled_in(texts: Texts) -> None:
    for field in dataclasses.fields(Texts):
        ours, theirs = getattr(ENGLISH, field.name), getattr(texts, field.name)
        assert theirs
        if isinstance(ours, str):
            assert fields(ours) == fields(theirs), field.name
            if field.name not in ("title", "top_p"):
                assert ours != theirs, field.name


def test_every_early_end_has_words() -> None:
    unexplained = {StopReason.FINAL_ANSWER, StopReason.CANCELLED, StopReason.INVALID_OUTPUT, StopReason.PAUSED}
    for texts in LANGUAGES.values():
        assert set(texts.limits) == set(StopReason) - unexplained


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("", "en"),
        ("ja", "ja"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("de-DE,de;q=0.9,ja;q=0.5,en;q=0.3", "ja"),
        ("en;q=0.3, zh;q=0.7", "zh"),
        ("ja;q=0, fr", "en"),
        ("zh;q=nonsense;;,", "en"),
        ("*", "en"),
    ],
)
def test_the_language_of_the_browser(header: str, code: str) -> None:
    assert preferred(header).code == code
