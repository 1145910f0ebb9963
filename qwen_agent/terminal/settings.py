"""How the next answer is sampled: `:conf` reads values by the fields of GenerationConfig, and evaluates nothing."""

from __future__ import annotations

import difflib
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from qwen_agent.errors import InputError
from qwen_agent.llm.config import GenerationConfig


def _seed(text: str) -> int | None:
    if text.lower() == "none":
        return None
    if not 0 <= int(text) < 2**63:  # what torch takes
        raise ValueError
    return int(text)


def _strings(text: str) -> tuple[str, ...]:
    """``[]``, ``["\\n\\n", "END"]``, or one string as it stands."""
    if not text.startswith("["):
        return (text,) if text else ()
    read = json.loads(text)
    if not isinstance(read, list) or not all(isinstance(each, str) for each in read):
        raise ValueError
    return tuple(read)


_READ: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "max_new_tokens": (int, "a whole number"),
    "temperature": (float, "a number"),
    "top_k": (int, "a whole number"),
    "top_p": (float, "a number"),
    "repetition_penalty": (float, "a number"),
    "seed": (_seed, "a whole number from 0 to 2**63 - 1, or none"),
    "stop": (_strings, "a string, or a JSON list of strings in quotes such as '[\"END\"]'"),
}
NAMES = tuple(_READ)


def changed(config: GenerationConfig, text: str) -> GenerationConfig:
    """The settings with the changes of ``text``, such as ``temperature=0.7 top_p=0.9``; all of them or none.

    Raises InputError, which names the setting and what it may be.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"{text} cannot be read ({error}): write name=value, with quotes around spaces") from None
    changes = dict(_setting(word) for word in words)
    return replace(config, **changes)


def shown(config: GenerationConfig) -> str:
    """Every setting on a line, as `changed` reads it."""
    return "\n".join(f"{name}={_text(getattr(config, name))}" for name in NAMES)


def _setting(word: str) -> tuple[str, Any]:
    name, equals, value = word.partition("=")
    if name not in _READ:
        close = difflib.get_close_matches(name, _READ, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(_READ)}"
        raise InputError(f"there is no setting {name!r}: {hint}")
    read, wanted = _READ[name]
    if not equals:
        raise InputError(f"{name} has no value: write {name}=VALUE, {wanted}")
    try:
        return name, read(value)
    except ValueError:
        raise InputError(f"{name}={value} cannot be used: it must be {wanted}") from None


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return shlex.quote(json.dumps(value, ensure_ascii=False)) if value else "[]"
    return "none" if value is None else str(value)
