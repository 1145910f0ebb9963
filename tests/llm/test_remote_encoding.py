"""Prompts as an endpoint takes them: what looks like a control token, estimates, choices told apart."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Encoder

from qwen_agent.llm.hub import EMBEDDED
from qwen_agent.llm.remote.encoding import SURFACE, AsMessages, AsText, estimate, harmless, parts
from qwen_agent.llm.remote.weighing import probabilities
from qwen_agent.llm.tokenizer import BPETokenizer, QwenTokenizer
from qwen_agent.prompt import build, chatml, observation
from qwen_agent.tools.calculator import calculator
from qwen_agent.types import IM_START, Generated, Text

ENGINE = Encoder.from_file(str(EMBEDDED / "tokenizer.json"))  # takes "<|im_end|>" for the token
CONTROLS = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|extra_0|>", "<tool_call>", "</tool_call>", "<think>", "<s>"),
    *(
        "</s>",
        "<unk>",
        "<pad>",
        "<|eot_id|>",
        "<|begin_of_text|>",
        "<start_of_turn>",
        "[INST]",
        "[/INST]",
        "[TOOL_CALLS]",
    ),
    *("<｜begin▁of▁sentence｜>", "<reserved_106>", "[gMASK]", "<0x0A>", "<extra_id_0>", "]~b]", "]~!b[", "[e~["),
)
FRAGMENTS = st.lists(
    st.one_of(
        st.sampled_from([*CONTROLS, "<", ">", "|", "<|", "|>", "[", "]", "im_end", "INST", " ", "\n", "]~", "a"]),
        st.text(max_size=4),
    ),
    max_size=12,
).map("".join)


@pytest.mark.parametrize("control", CONTROLS)
def test_what_is_known_as_a_control_token_is_recognised(control: str) -> None:
    for text in (control, f"a{control}b", f"<{control}>", control * 2):
        assert not any(control in part for part in parts(text))
        assert control not in harmless(text)


@settings(max_examples=300, deadline=None)
@given(FRAGMENTS)
def test_parts_are_the_text_and_hold_no_control_token(text: str) -> None:
    found = parts(text)
    assert "".join(found) == text
    assert not any(control in part for part in found for control in CONTROLS)
    assert not any(control in harmless(text) for control in CONTROLS)


@settings(max_examples=200, deadline=None)
@given(FRAGMENTS)
def test_an_engines_own_tokenizer_finds_none_either(text: str) -> None:
    special = set(ENGINE.get_added_tokens_decoder())
    written = [i for part in parts(text) for i in ENGINE.encode(part, add_special_tokens=False).ids]
    assert not special.intersection(written)
    for body in (AsText(len).body((Text(text),))["prompt"], AsMessages(len, None).body(chatml(text, (), text))):
        said = body if isinstance(body, str) else "".join(m["content"] for m in body["messages"])
        assert not special.intersection(ENGINE.encode(said, add_special_tokens=False).ids)


def test_ordinary_text_goes_out_as_it_is() -> None:
    for text in (
        '{"a": [1, 2], "b": "x"}',
        "if a < b and c > d: x[i] = y[0]",
        "see [1] and [the docs](url)",
        "1 <2> 3",
    ):
        assert harmless(text) == text or SURFACE.search(text)
    assert harmless('Parameters: [{"name": "expression"}]') == 'Parameters: [{"name": "expression"}]'


TEXTS = (
    "How tall is the Eiffel Tower, and what is its height times three?",
    "多少米是十二英尺？请用计算器计算 1234 乘以 5678。",
    "日本で一番高い山は何ですか。富士山です。",
    "Сколько будет семью восемь?",
    "def area(radius: float) -> float:\n    return 3.14159 * radius**2  # in m²\n",
    json.dumps({"rows": [{"id": i, "price": i * 1.5, "name": f"item-{i}"} for i in range(20)]}),
    "| a | b |\n|---|---|\n| 1 | 2 |\n" * 5,
    "🙂👍🏽 naïve café — “quoted” … 100 €",
)


@pytest.mark.parametrize("text", TEXTS)
def test_an_estimate_is_not_too_low_and_not_out_of_all_proportion(text: str, qwen_tokenizer: QwenTokenizer) -> None:
    exact = len(qwen_tokenizer.encode(text))
    assert exact <= estimate(text) <= 4 * exact


def test_a_whole_prompt_is_estimated_on_the_high_side(qwen_tokenizer: QwenTokenizer) -> None:
    own = BPETokenizer(EMBEDDED / "tokenizer.json")
    text = "".join(s.content for s in build(TEXTS[0], tools=[calculator]) if isinstance(s, Text))
    for tokenizer in (qwen_tokenizer, own):
        assert len(tokenizer.encode(text)) <= estimate(text) <= 2 * len(tokenizer.encode(text))


def test_a_conversation_becomes_messages() -> None:
    prompt = (*chatml("b?", [("a?", (Generated("a", (1,)), Text("!")))], "Be brief."), Text("Thought:"))
    messages = AsMessages(len, {"go": True}).body(prompt)
    assert messages == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "a?"},
            {"role": "assistant", "content": "a!"},
            {"role": "user", "content": "b?"},
            {"role": "assistant", "content": "Thought:"},
        ],
        "go": True,
    }
    assert AsMessages(len, {"go": True}).body(prompt[:-1])["messages"][-1]["role"] == "user"


def test_an_observation_stays_in_the_raw_prompt() -> None:
    prompt = (*chatml("q", (), "s"), Text("Thought: x\n"), *observation("<|im_end|>"))
    written = AsText(len).body(prompt)["prompt"]
    assert written.endswith("<|im_start|>assistant\nThought: x\nObservation: < |im_end|>\nThought:")
    assert written.count(IM_START.name) == 3


def test_choices_are_read_as_far_as_they_differ() -> None:
    asked: list[list[int]] = []

    def score(tails: list[list[int]]) -> list[float]:
        asked.extend(list(tail) for tail in tails)
        return [math.log(0.2), math.log(0.3), math.log(0.5)]

    found = probabilities([[1, 2, 9, 9], [1, 3, 4, 9], [1, 3, 5]], score)  # type: ignore[arg-type]
    assert asked == [[1, 2], [1, 3, 4], [1, 3, 5]]
    assert found == pytest.approx((0.2, 0.3, 0.5))
