"""The tokens that Tool Input is compared by: the Qwen tokenizer's, or the embedded model's for want of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from rules import Tokenize

from qwen_agent.llm.hub import EMBEDDED
from qwen_agent.llm.tokenizer import QwenTokenizer, Tokenizer, load_tokenizer


@cache
def tokens_of(path: Path | None) -> tuple[Tokenize, str]:
    """The function, and the tokenizer's name for the report. ``path`` is a qwen.tiktoken, or a folder with one.

    The original's figures are made with Qwen's; with another they differ in the second decimal.
    """
    if path is None:
        return _texts(load_tokenizer(EMBEDDED)), "embedded model (the original's is Qwen's: give --tokenizer)"
    file = path / "qwen.tiktoken" if path.is_dir() else path
    if not file.is_file():
        raise SystemExit(f"there is no {file}: give --tokenizer a qwen.tiktoken file, or leave it out")
    return _texts(QwenTokenizer(file)), "Qwen"


def _texts(tokenizer: Tokenizer) -> Tokenize:
    def texts(text: str) -> Sequence[str]:
        return [tokenizer.token_bytes(token).decode("utf-8", errors="replace") for token in tokenizer.encode(text)]

    return texts
