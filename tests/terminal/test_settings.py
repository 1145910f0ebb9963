from __future__ import annotations

import pytest

from qwen_agent.errors import InputError
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.terminal.settings import changed, shown

CONFIG = GenerationConfig(seed=1)


def test_every_setting_is_read_as_it_is_shown() -> None:
    config = GenerationConfig(
        max_new_tokens=7, temperature=0.5, top_k=3, top_p=0.9, repetition_penalty=1.1, seed=None, stop=("a b", "c'\n")
    )
    assert changed(CONFIG, " ".join(shown(config).splitlines())) == config


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("temprature=1", "did you mean temperature"),
        ("grammar=x", "there are max_new_tokens"),
        ("temperature", "has no value"),
        ("temperature=", "must be a number"),
        ("temperature=nan", "positive finite"),
        ("top_k=1.5", "a whole number"),
        ("top_k=__import__('os')", "a whole number"),
        ("seed=-1", "2\\*\\*63"),
        (f"seed={2**64}", "2\\*\\*63"),
        ("stop=[1]", "JSON list"),
        ("stop='", "cannot be read"),
        ("max_new_tokens=0", "at least 1"),
    ],
)
def test_what_cannot_be_used_is_said(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        changed(CONFIG, f"top_p=0.5 {text}")
