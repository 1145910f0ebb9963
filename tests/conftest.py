"""Shared fixtures: tiny checkpoints, the real Qwen vocabulary, the embedded model, a scripted runtime."""

from __future__ import annotations

import json
import lzma
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.local import LocalRuntime, load_runtime
from qwen_agent.llm.runtime import Chunk, text_of
from qwen_agent.llm.stopping import StopStrings
from qwen_agent.llm.tokenizer import QwenTokenizer
from qwen_agent.tools import index
from qwen_agent.types import Prompt, Text, Usage

# On a busy machine, two threads slow each other down far more than in proportion; in commands that tests run, too.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    return DATA


@pytest.fixture(scope="session")
def golden() -> dict[str, np.ndarray]:
    """Numbers made by the original code; ``w/<name>`` are the weights."""
    with np.load(DATA / "tiny_qwen_golden.npz") as file:
        return {key: file[key] for key in file.files}


@pytest.fixture(scope="session")
def golden_weights(golden: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {key[2:]: torch.from_numpy(value) for key, value in golden.items() if key.startswith("w/")}


@pytest.fixture(scope="session")
def golden_config() -> dict[str, object]:
    config = json.loads((DATA / "tiny_qwen_golden.json").read_text())["config"]
    return config | {"architectures": ["QWenLMHeadModel"]}


@pytest.fixture
def qwen1_folder(
    tmp_path: Path, golden_weights: dict[str, torch.Tensor], golden_config: dict[str, object]
) -> Callable[..., Path]:
    """Write the tiny Qwen-1 checkpoint with config changes; returns its folder."""

    def write(**changes: object) -> Path:
        save_file(golden_weights, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(golden_config | changes))
        return tmp_path

    return write


@pytest.fixture(scope="session")
def qwen_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> QwenTokenizer:
    path = tmp_path_factory.mktemp("vocabulary") / "qwen.tiktoken"
    path.write_bytes(lzma.decompress((DATA / "qwen.tiktoken.xz").read_bytes()))
    return QwenTokenizer(path)


@pytest.fixture(scope="session")
def embedded() -> LocalRuntime:
    """The model that ships with the package."""
    return load_runtime("embedded", device="cpu")


class ScriptedRuntime:
    """A runtime that says what it is told to, letter by letter, honouring stop strings; a word is a token."""

    def __init__(self, *outputs: str, window: int = 10_000, weights: tuple[float, ...] = ()) -> None:
        self.name = "scripted"
        self.window = window
        self.weights = weights
        self.outputs = list(outputs)
        self.prompts: list[str] = []
        self.configs: list[GenerationConfig] = []
        self.closed = 0

    def stream(self, prompt: Prompt, config: GenerationConfig) -> Iterator[Chunk]:
        self.prompts.append(text_of(prompt))
        self.configs.append(config)
        text = self.outputs[0]
        stops = StopStrings(config.stop)
        shown = ""
        try:
            if config.choices and self.weights:
                yield Chunk(weights=self.weights)
            self.outputs.pop(0)
            for letter in text:
                piece = stops.feed(letter)
                shown += piece
                yield Chunk(text=piece)
                if stops.matched:
                    break
        finally:
            self.closed += 1
        tail = "" if stops.matched else stops.flush()
        shown += tail
        words = len(shown.split())
        cut = not stops.matched and words >= config.max_new_tokens
        usage = Usage(self.count_tokens(prompt), 0, words)
        yield Chunk(tail, finish="length" if cut else "stop", stop=stops.matched, output=(Text(shown),), usage=usage)

    def score(self, prompt: Prompt, choices: Sequence[Prompt]) -> list[float]:
        return [-float(self.count_tokens(choice)) for choice in choices]

    def count_tokens(self, prompt: Prompt) -> int:
        return len(text_of(prompt).split())


@pytest.fixture(scope="session")
def scripted() -> type[ScriptedRuntime]:
    return ScriptedRuntime


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test writes to the user's own cache, nor does a command that a test runs."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        patch.setattr(index, "cache_folder", lambda *_: folder)
        yield folder
