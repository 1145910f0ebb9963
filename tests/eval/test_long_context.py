"""Perplexity over long texts: samples, variants, the log, the figures."""

from __future__ import annotations

import json
import lzma
import math
from collections.abc import Callable
from pathlib import Path

import long_context
import pytest
import torch
from long_context import Sample, cut, markdown, measure, perplexities, variants

from qwen_agent.errors import InputError
from qwen_agent.llm.weights import load_model

LENGTHS = (16, 64)
ABOUT = {"model": "tiny"}


@pytest.fixture
def folder(qwen1_folder: Callable[..., Path], data: Path) -> Path:
    """A tiny model of a training length of 32, with dynamic NTK and LogN, and a window shorter than the samples."""
    made = qwen1_folder(seq_length=32, use_dynamic_ntk=True, use_logn_attn=True, n_positions=48)
    (made / "qwen.tiktoken").write_bytes(lzma.decompress((data / "qwen.tiktoken.xz").read_bytes()))
    return made


@pytest.fixture
def ids() -> list[int]:
    return [(7 * n * n + 3 * n) % 150 for n in range(128)]


def test_every_variant_is_that_of_a_plain_pass(folder: Path, ids: list[int], tmp_path: Path) -> None:
    found = list(measure(folder, ids, LENGTHS, tmp_path / "log.jsonl", ABOUT, "cpu", "float32"))
    assert [(s.length, s.number) for s in found if s.variant == "plain"] == [
        *((16, n) for n in range(8)),
        (64, 0),
        (64, 1),
    ]
    for variant, changes in variants(folder).items():
        copy = tmp_path / variant.replace(" ", "")
        copy.mkdir()
        long_context._changed(folder, copy, changes, 64)
        model = load_model(copy, "cpu", torch.float32)
        for sample in (one for one in found if one.variant == variant and one.length == 64):
            piece = torch.tensor([ids[sample.number * 64 : (sample.number + 1) * 64]])
            logs = torch.log_softmax(model(piece)[0, :-1].float(), dim=-1).gather(1, piece[0, 1:, None])
            assert sample.nll == pytest.approx(-float(logs.sum()), rel=1e-5)
            assert sample.tokens == 63
    nll = {(s.variant, s.length, s.number): s.nll for s in found}
    assert nll["plain", 16, 0] == pytest.approx(
        nll["+ dynamic NTK + LogN", 16, 0], rel=1e-6
    )  # within what it was made for
    assert nll["plain", 64, 0] != pytest.approx(nll["+ dynamic NTK", 64, 0], rel=1e-3)
    assert nll["+ dynamic NTK", 64, 0] != pytest.approx(nll["+ dynamic NTK + LogN", 64, 0], rel=1e-4)


@pytest.fixture
def without(folder: Path) -> Path:
    """The same without NTK and LogN."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"use_dynamic_ntk": False, "use_logn_attn": False}))
    return folder


def test_a_model_without_ntk_has_one_variant(without: Path) -> None:
    assert variants(without) == {"as it is": {}}


def test_a_killed_run_goes_on_where_it_ended(
    without: Path, ids: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log.jsonl"
    whole = list(measure(without, ids, (32,), log, ABOUT, "cpu", "float32"))
    kept = log.read_text().splitlines()[:2]
    log.write_text("\n".join(kept) + '\n{"about": {"mod')  # killed within the third line
    read: list[int] = []
    original = long_context.token_logprobs
    monkeypatch.setattr(long_context, "token_logprobs", lambda *args: read.append(1) or original(*args))
    again = list(measure(without, ids, (32,), log, ABOUT, "cpu", "float32"))
    assert [sample.nll for sample in again] == pytest.approx([sample.nll for sample in whole])
    assert (len(read), len(whole)) == (2, 4)
    with pytest.raises(InputError, match="another model or other texts"):
        list(measure(without, ids, (32,), log, {"model": "other"}, "cpu", "float32"))


def test_every_length_has_the_same_tokens() -> None:
    assert cut(range(100), 16, 50) == list(range(48))
    with pytest.raises(InputError, match="not one sample of 16"):
        cut(range(15), 16, 50)


def test_the_figures() -> None:
    # means of 1 and 3: e to the 2; the standard error of the mean is 1
    samples = [Sample("a", 11, 0, 10.0, 10), Sample("a", 11, 1, 30.0, 10), Sample("a", 21, 0, 20.0, 20)]
    short, long = perplexities(samples)
    assert (short.value, short.low, short.high) == pytest.approx((math.e**2, math.e**0.04, math.e**3.96))
    assert long.value == pytest.approx(math.e) and math.isnan(long.low)
    page = markdown([short, long], [11, 21], "tiny", 22)
    assert "| a | 7.39 [1.04, 52.46] | 2.72 |" in page and "| Qwen-7B of 2023-08 | 4.23 | 3.78 | 39.35 |" in page


def test_the_curves_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    samples = [Sample("a", length, n, 10.0 + n, 10) for length in (16, 32) for n in range(2)]
    long_context._plot(perplexities(samples), tmp_path / "curve.png", "tiny")
    assert (tmp_path / "curve.png").stat().st_size > 1000
