"""The page in a process of its own: Gradio leaves event loops behind, which other tests would be blamed for."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))


@dataclass(frozen=True)
class Served:
    url: str
    root: Path


@pytest.fixture
def until() -> Callable[[Callable[[], object]], None]:
    """Wait until something is so."""

    def wait(condition: Callable[[], object], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.005)

    return wait


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with the page, and a runtime that answers by rules (talker.py)."""
    for package in ("gradio", "uvicorn"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    log = tmp_path_factory.mktemp("web") / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, HERE / "serve.py"], stdout=subprocess.PIPE, stderr=errors, text=True
        )
    with process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, log.read_text()
        told = json.loads(line)
        yield Served(f"http://127.0.0.1:{told['port']}", Path(told["root"]))
        process.send_signal(signal.SIGINT)
        process.wait(30)
    assert not Path(told["root"]).exists()  # nothing is left when the server ends
