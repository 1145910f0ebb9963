"""The script that measures other systems on a card runs on the CPU at a toy shape. Nothing is judged by its speed."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

SCRIPT = Path(__file__).parent.parent / "eval" / "gpu_peers.py"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("peers") / "out.json"
    command = [sys.executable, str(SCRIPT), "--tiny", "--peers", "copy,transformers,gpt-fast-bf16", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "of roof" in done.stdout
    return json.loads(out.read_text())


def test_versions_and_card_are_named(report: Any) -> None:
    assert report["card"] == "cpu" and report["tiny"] and report["gpt_fast_commit"] == "unknown"
    assert all(report[name] for name in ("torch", "transformers", "triton"))


def test_ceilings_are_measured(report: Any) -> None:
    best = {row["case"]: row["best"] for row in report["rows"] if row["peer"] == "copy"}
    assert best.keys() == {"copy GB/s", "read GB/s", "product TFLOP/s"} and min(best.values()) > 0


def test_every_figure_is_set_against_them(report: Any) -> None:
    rows = [row for row in report["rows"] if row["peer"] == "transformers"]
    assert [row["case"] for row in rows] == [
        "prefill 16, eager",
        "prefill 32, eager",
        "decode 4, eager, dynamic cache",
    ]
    for row in rows:
        assert row["roofline_share"] > 0 and row["tokens_per_second"] > 0 and row["runs"]
    assert rows[-1]["ms"] == pytest.approx(1e3 / rows[-1]["tokens_per_second"])


def test_a_peer_left_out_is_named(report: Any) -> None:
    assert report["failed"] == {"gpt-fast-bf16": "left out: no --gpt-fast"}


def test_the_bytes_of_a_token_are_those_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    shape = importlib.import_module("gpu_peers").Shape()
    assert shape.bytes_per_token(False, 0) / 1e9 == pytest.approx(14.20, abs=0.01)
    assert shape.bytes_per_token(True, 0) / 1e9 == pytest.approx(4.58, abs=0.01)
    assert shape.bytes_per_token(True, 8192) / 1e9 == pytest.approx(8.88, abs=0.01)
    assert shape.prefill_flops(2048) / 798e12 == pytest.approx(34.6e-3, rel=0.01)
