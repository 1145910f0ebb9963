"""The runtime on the embedded model and on tiny ones: caching, stopping, cancelling, scoring."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch

from qwen_agent.errors import ContextOverflow, InputError
from qwen_agent.llm import load_model, load_runtime
from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.grammar import Grammar, step_grammar
from qwen_agent.llm.hub import EMBEDDED
from qwen_agent.llm.local import LocalRuntime
from qwen_agent.llm.runtime import Chunk, text_of
from qwen_agent.llm.tokenizer import QwenTokenizer, encode_prompt
from qwen_agent.prompt import chatml
from qwen_agent.types import Generated, Text

HELLO = chatml("Say hello to Anna.", (), "You are a helpful assistant.")
LETTERS = 160  # ids of the tiny model; token i is a letter


class LetterTokenizer:
    """160 one-letter tokens for the tiny model, of which the last 10 are padding rows."""

    specials = MappingProxyType({"<|im_end|>": 0})
    size = 150

    def encode(self, text: str) -> list[int]:
        return [ord(c) - 0x100 for c in text]

    def token_bytes(self, token_id: int) -> bytes:
        return b"" if token_id == 0 else chr(0x100 + token_id).encode()

    def vocabulary(self) -> dict[bytes, int]:
        return {self.token_bytes(i): i for i in range(1, self.size)}


@pytest.fixture
def tiny(qwen1_folder: Callable[..., Path]) -> LocalRuntime:
    """The golden checkpoint as a runtime: NTK and LogN on, trained on 32 tokens, so boundaries are near."""
    return LocalRuntime(load_model(qwen1_folder(use_dynamic_ntk=True, use_logn_attn=True)), LetterTokenizer())


def letters(ids: np.ndarray) -> Text:
    return Text("".join(chr(0x100 + int(i)) for i in ids))


def finish(runtime: LocalRuntime, prompt: tuple, **settings: object) -> Chunk:
    *_, last = runtime.stream(prompt, GenerationConfig(**settings))  # type: ignore[arg-type]
    return last


def test_greedy_generation_follows_the_logits(tiny: LocalRuntime, golden: dict[str, np.ndarray]) -> None:
    ids = golden["ids"][0, :20].clip(1, 149)
    last = finish(tiny, (letters(ids),), max_new_tokens=8)
    expected = list(ids)
    model, cache = tiny.model, tiny.model.new_cache(20)
    logits = model.last_logits(torch.tensor([expected]), cache)
    written: list[int] = []
    for _ in range(8):
        written.append(int(logits[0, :150].argmax()))
        logits = model.last_logits(torch.tensor([[written[-1]]]), cache)
    until_end = list(itertools.takewhile(lambda i: i != 0, written))
    assert [i for s in last.output if isinstance(s, Generated) for i in s.token_ids] == until_end


@pytest.mark.parametrize("first", [25, 31, 40, 70])
def test_a_continued_prompt_gives_what_a_fresh_runtime_gives(
    first: int, tiny: LocalRuntime, golden: dict[str, np.ndarray]
) -> None:
    """Across NTK boundaries too (32 and 64 tokens here), where keys under another alpha must not be reused."""
    ids = golden["ids"][0, :80].clip(1, 149)
    start, whole = (letters(ids[:first]),), (letters(ids),)
    finish(tiny, start, max_new_tokens=4)
    warm = finish(tiny, whole, max_new_tokens=12)
    cold = finish(LocalRuntime(tiny.model, tiny.tokenizer), whole, max_new_tokens=12)
    assert text_of(warm.output) == text_of(cold.output)
    assert cold.usage.cached_tokens == 0
    same_bucket = first > 64
    assert warm.usage.cached_tokens == (first if same_bucket else 0)


def test_streams_can_be_interleaved(tiny: LocalRuntime, golden: dict[str, np.ndarray]) -> None:
    ids = golden["ids"][0].clip(1, 149)
    prompts = [(letters(ids[:20]),), (letters(ids[:200]),), (letters(ids[5:50]),)]
    alone = [text_of(finish(LocalRuntime(tiny.model, tiny.tokenizer), p, max_new_tokens=10).output) for p in prompts]
    streams = [tiny.stream(p, GenerationConfig(max_new_tokens=10)) for p in prompts]
    together = ["", "", ""]
    for round_ in itertools.zip_longest(*streams):
        for i, chunk in enumerate(round_):
            together[i] += chunk.text if chunk is not None else ""
    assert together == alone


def test_a_closed_stream_leaves_the_runtime_usable(tiny: LocalRuntime, golden: dict[str, np.ndarray]) -> None:
    prompt = (letters(golden["ids"][0, :30].clip(1, 149)),)
    expected = text_of(finish(tiny, prompt, max_new_tokens=10).output)
    stream = tiny.stream(prompt, GenerationConfig(max_new_tokens=10))
    for _ in range(3):
        next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert text_of(finish(tiny, prompt, max_new_tokens=10).output) == expected


def test_an_interrupt_within_a_forward_pass_leaves_the_cache_right(
    tiny: LocalRuntime, golden: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = (letters(golden["ids"][0, :30].clip(1, 149)),)
    expected = text_of(finish(tiny, prompt, max_new_tokens=10).output)
    layer = tiny.model.layers[1].mlp
    calls = itertools.count()
    forward = layer.forward

    def interrupted(x: torch.Tensor) -> torch.Tensor:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return forward(x)

    monkeypatch.setattr(layer, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        finish(tiny, prompt, max_new_tokens=10)
    monkeypatch.undo()
    assert text_of(finish(tiny, prompt, max_new_tokens=10).output) == expected


def test_score_is_the_log_probability_of_each_continuation(tiny: LocalRuntime, golden: dict[str, np.ndarray]) -> None:
    ids = golden["ids"][0].clip(1, 149)
    choices = [ids[20:21], ids[20:25], ids[30:32], ids[:0]]
    scores = tiny.score((letters(ids[:20]),), [(letters(c),) for c in choices])
    for score, choice in zip(scores, choices, strict=True):
        whole = torch.tensor([[*ids[:20], *choice]])
        # Frozen alpha: the prompt decides it, not the choice.
        rows = tiny.model(whole, tiny.model.new_cache(20))[0, 19:, :150].log_softmax(-1)
        expected = sum(float(rows[i, c]) for i, c in enumerate(choice))
        assert score == pytest.approx(expected, abs=1e-4)


def test_the_window_bounds_prompt_and_output(qwen1_folder: Callable[..., Path], golden: dict[str, np.ndarray]) -> None:
    runtime = LocalRuntime(load_model(qwen1_folder(max_position_embeddings=40)), LetterTokenizer())
    ids = golden["ids"][0].clip(1, 149)
    with pytest.raises(ContextOverflow, match="40 tokens but the model's window is 40"):
        runtime.stream((letters(ids[:40]),), GenerationConfig())
    last = finish(runtime, (letters(ids[:35]),), max_new_tokens=100, temperature=1.0, seed=1)
    assert last.usage.generated_tokens <= 5


def test_the_embedded_model_calls_a_tool_and_the_cache_survives_the_step(embedded: LocalRuntime) -> None:
    from qwen_agent.prompt import build, observation
    from qwen_agent.tools.calculator import calculator

    prompt = build("What is 37 * 43?", tools=[calculator])
    config = GenerationConfig(stop=("Observation:",), grammar=step_grammar([calculator]))
    *_, first = embedded.stream(prompt, config)
    assert first.stop == "Observation:"
    assert "Action: calculator\n" in text_of(first.output)
    assert text_of(first.output).endswith("}\n")
    longer = prompt + first.output + observation("1591")
    *_, second = embedded.stream(longer, config)
    new = embedded.count_tokens(longer) - embedded.count_tokens(prompt + first.output)
    # The observation's tokens, and a few that ended the call: what must follow is read only if it is needed.
    assert new - 4 <= second.usage.prefilled_tokens <= new + 6


def test_choices_are_weighed_where_the_prompt_ends(embedded: LocalRuntime) -> None:
    choices = tuple((Text(text),) for text in (" Paris", " Paris is", " Rome", " Paris is", ""))
    prompt = (Text("The capital of France is"),)
    chunks = list(embedded.stream(prompt, GenerationConfig(max_new_tokens=3, choices=choices)))
    weighed = next(chunk for chunk in chunks if chunk.weights)
    weights = weighed.weights or ()
    assert weighed.usage.prompt_tokens == chunks[-1].usage.prompt_tokens
    assert sum(weights) == pytest.approx(1.0)
    # Choices that begin others count as far as they go; equal ones weigh the same.
    assert weights[0] > weights[1] == weights[3]
    plain = list(embedded.stream(prompt, GenerationConfig(max_new_tokens=3)))
    assert text_of(chunks[-1].output) == text_of(plain[-1].output)
    two = next(c.weights for c in embedded.stream(prompt, GenerationConfig(choices=choices[:3:2])) if c.weights)
    paris, rome = embedded.score(prompt, [choices[0], choices[2]])
    assert two[0] / two[1] == pytest.approx(math.exp(paris - rome), rel=0.02)


def test_what_must_follow_is_read_in_one_pass(embedded: LocalRuntime) -> None:
    grammar = Grammar('start: "The answer is " /[0-9]/ ", and that is all there is to say."')
    *_, last = embedded.stream(HELLO, GenerationConfig(grammar=grammar))
    assert text_of(last.output).startswith("The answer is ")
    assert text_of(last.output).endswith(" say.")
    assert last.finish == "stop"
    assert last.usage.generated_tokens > 10


def test_streamed_text_is_the_whole_text(embedded: LocalRuntime) -> None:
    chunks = list(embedded.stream(HELLO, GenerationConfig(max_new_tokens=30, temperature=1.2, seed=5)))
    assert "".join(c.text for c in chunks) == text_of(chunks[-1].output)
    assert chunks[0].read is not None
    assert chunks[-1].usage.generated_tokens == sum(
        len(s.token_ids) for s in chunks[-1].output if isinstance(s, Generated)
    )


def test_a_stop_string_cuts_at_a_token_or_within_one(embedded: LocalRuntime) -> None:
    free = text_of(finish(embedded, HELLO, max_new_tokens=20).output)
    stop = free[5:8]
    last = finish(embedded, HELLO, max_new_tokens=20, stop=(stop,))
    assert text_of(last.output) == free[: free.find(stop)]
    assert (last.finish, last.stop) == ("stop", stop)


def test_a_seed_repeats_and_sampling_differs(embedded: LocalRuntime) -> None:
    def sampled(seed: int) -> str:
        return text_of(finish(embedded, HELLO, max_new_tokens=25, temperature=1.5, seed=seed).output)

    assert sampled(1) == sampled(1)
    assert len({sampled(s) for s in range(4)}) > 1


def test_the_embedded_model_equals_transformers_on_the_same_weights(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import Qwen2ForCausalLM

    from qwen_agent.llm.config import read_model_config
    from qwen_agent.llm.quantization import SUFFIXES, QuantizedWeight, dequantize

    quantization = read_model_config(EMBEDDED).quantization
    assert quantization is not None
    tensors = load_file(EMBEDDED / "model.safetensors")
    packed = {name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")}
    dense = {n: t for n, t in tensors.items() if n.rpartition(".")[2] not in SUFFIXES}
    for name in packed:
        scheme = quantization.scheme(name)
        assert scheme is not None
        dense[f"{name}.weight"] = dequantize(QuantizedWeight.from_tensors(name, tensors, scheme))
    save_file({n: t.float().contiguous() for n, t in dense.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((EMBEDDED / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = Qwen2ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.randint(20, 49_000, (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(ids).logits
    assert load_model("embedded", dtype=torch.float32)(ids).numpy() == pytest.approx(expected.numpy(), abs=1e-3)


def test_packed_cpu_kernels_agree_with_the_reference(embedded: LocalRuntime) -> None:
    """On real text: random ids drive this small model so far off that any half precision differs."""
    prompt = chatml("How tall is the Eiffel Tower multiplied by three?", (), "You are a helpful assistant.")
    ids = torch.tensor([encode_prompt(embedded.tokenizer, prompt)])
    exact = load_model("embedded", dtype=torch.float32)(ids)
    fast = embedded.model(ids).float()
    assert embedded.model.layers[0].mlp.down.kernel == "int4_cpu"
    assert embedded.model.head.kernel == "int8_cpu"
    assert (fast - exact).norm() / exact.norm() < 0.05


def test_a_qwen_vocabulary_drives_a_qwen1_model(
    qwen1_folder: Callable[..., Path], qwen_tokenizer: QwenTokenizer, golden_weights: dict[str, torch.Tensor]
) -> None:
    """A real-sized vocabulary on tiny layers: the whole path of a Qwen-7B-Chat folder."""
    from safetensors.torch import save_file

    folder = qwen1_folder(vocab_size=151_936)
    generator = torch.Generator().manual_seed(0)
    wide = {n: torch.randn(151_936, 64, generator=generator) for n in ("transformer.wte.weight", "lm_head.weight")}
    save_file(golden_weights | wide, folder / "model.safetensors")
    lines = (f"{__import__('base64').b64encode(b).decode()} {i}" for b, i in qwen_tokenizer.vocabulary().items())
    (folder / "qwen.tiktoken").write_text("\n".join(lines))
    runtime = load_runtime(folder, device="cpu", dtype="float32")
    assert runtime.stop_ids == {151_643, 151_644, 151_645}
    last = finish(
        runtime, chatml("你好", (), "You are a helpful assistant."), max_new_tokens=8, temperature=2.0, seed=0
    )
    assert last.usage.prompt_tokens == 20
    assert all(i < 151_851 for s in last.output if isinstance(s, Generated) for i in s.token_ids)


def test_a_wrong_dtype_or_device_is_named() -> None:
    with pytest.raises(InputError, match="float99"):
        load_runtime("embedded", dtype="float99")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no CUDA device"):
            load_runtime("embedded", device="cuda", dtype="float32")


def test_an_eight_bit_cache_on_the_cpu_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(InputError, match="kv_cache 'int8' on cpu is not implemented: use 'int8' with device='cuda'"):
        load_runtime("nowhere/at-all", device="cpu", kv_cache="int8")
