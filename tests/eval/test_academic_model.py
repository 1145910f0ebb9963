"""Our runtime as the harness's model: likelihoods, texts, chats, on the model that ships with the package."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("lm_eval")

from academic_model import RuntimeLM, generation_config

from qwen_agent.errors import InputError
from qwen_agent.llm.local import LocalRuntime
from qwen_agent.llm.tokenizer import encode_prompt
from qwen_agent.prompt import DEFAULT_SYSTEM, chatml


def request(*args: object) -> SimpleNamespace:
    return SimpleNamespace(args=args)


@pytest.fixture
def model(embedded: LocalRuntime) -> RuntimeLM:
    return RuntimeLM(embedded)


def plainly(runtime: LocalRuntime, context: list[int], tail: list[int]) -> tuple[float, bool]:
    """One forward pass over everything, without a cache."""
    logits = runtime.model(torch.tensor([context + tail]), None)[0].float()[:, : runtime.tokenizer.size]  # type: ignore[arg-type]
    rows = torch.log_softmax(logits[len(context) - 1 : -1], dim=-1)
    log = float(rows.gather(1, torch.tensor(tail)[:, None]).sum())
    return log, rows.argmax(dim=-1).tolist() == tail


def test_likelihoods_are_those_of_a_plain_pass(model: RuntimeLM, embedded: LocalRuntime) -> None:
    encode = embedded.tokenizer.encode
    context = "The capital of France is"
    tails = [" Paris", " London", " a city in the north"]
    answers = model.loglikelihood([request(context, tail) for tail in tails])
    for tail, (log, greedy) in zip(tails, answers, strict=True):
        expected, expected_greedy = plainly(embedded, encode(context), encode(tail))
        assert log == pytest.approx(expected, rel=0.02)
        assert greedy == expected_greedy
    assert answers[0][0] > answers[1][0]


def test_the_order_of_requests_does_not_matter(model: RuntimeLM) -> None:
    asked = [
        request(context, tail) for context in ("One, two,", "Monday, Tuesday,") for tail in (" three", " Wednesday")
    ]
    forward = model.loglikelihood(asked)
    backward = model.loglikelihood(asked[::-1])[::-1]
    assert [log for log, _ in forward] == pytest.approx([log for log, _ in backward], rel=0.02)
    assert [greedy for _, greedy in forward] == [greedy for _, greedy in backward] == [True, False, False, False]


def test_a_text_without_context_and_a_rolling_one_agree(model: RuntimeLM) -> None:
    text = "A dog is an animal."
    ((log, _),) = model.loglikelihood([request("", text)])
    assert model.loglikelihood_rolling([request(text)]) == [pytest.approx(log, rel=0.02)]


def test_a_long_text_is_read_in_windows(embedded: LocalRuntime) -> None:
    text = "one two three four five six seven eight nine ten eleven twelve"
    ids = embedded.tokenizer.encode(text)
    windows = RuntimeLM(embedded, max_length=6)
    (answer,) = windows.loglikelihood_rolling([request(text)])
    expected, size = 0.0, 5  # each window reads five tokens and predicts the next five
    for start in range(0, len(ids), size):
        tail = ids[start : start + size]
        before = ids[max(start - 1 - (size - len(tail)), 0) : start] or [windows.prefix_token_id]
        expected += plainly(embedded, before, tail)[0]
    assert len(ids) > 2 * size and answer == pytest.approx(expected, rel=0.02)


def test_a_prompt_that_is_too_long_keeps_its_end(embedded: LocalRuntime) -> None:
    short = RuntimeLM(embedded, max_length=6)
    encode = embedded.tokenizer.encode
    context, tail = "a b c d e f g h", " i"
    ((log, _),) = short.loglikelihood([request(context, tail)])
    assert log == pytest.approx(plainly(embedded, encode(context)[-5:], encode(tail))[0], rel=0.02)
    assert short.cut > 0
    with pytest.raises(InputError, match="exceeds the 6"):
        short.loglikelihood([request("a", " b c d e f g h i j")])


def test_texts_end_at_a_stop_string(model: RuntimeLM) -> None:
    settings = {"until": [], "do_sample": False, "max_gen_toks": 12}
    (free,) = model.generate_until([request("one two three four five six seven", settings)])
    stop = free[len(free) // 2 :][:4]
    (text,) = model.generate_until([request("one two three four five six seven", settings | {"until": [stop]})])
    assert text == free[: free.index(stop)] != free


def test_answers_go_to_the_cache_as_they_come(model: RuntimeLM) -> None:
    kept: list[tuple[str, object, object]] = []
    model.set_cache_hook(SimpleNamespace(add_partial=lambda *row: kept.append(row)))
    answers = model.loglikelihood([request("One, two,", " three")])
    assert kept == [("loglikelihood", ("One, two,", " three"), answers[0])]


def test_a_chat_keeps_its_control_tokens_and_text_never_becomes_one(model: RuntimeLM, embedded: LocalRuntime) -> None:
    hostile = "What is <|im_end|> for?"
    chat = model.apply_chat_template([{"role": "user", "content": hostile}])
    ids = model.tok_encode(chat)
    assert ids == encode_prompt(embedded.tokenizer, chatml(hostile, (), DEFAULT_SYSTEM))
    assert ids.count(embedded.tokenizer.specials["<|im_end|>"]) == 2
    assert chat.endswith("<|im_start|>assistant\n")
    ((log, _),) = model.loglikelihood([request(chat, "It")])
    assert math.isfinite(log)


def test_a_chat_has_turns_that_alternate(model: RuntimeLM) -> None:
    turns = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user")]
    assert model.apply_chat_template(turns).startswith("<|im_start|>system\nsystem<|im_end|>")
    with pytest.raises(InputError, match="alternate"):
        model.apply_chat_template(turns[:3])


def test_settings_of_the_harness() -> None:
    greedy = generation_config({"until": "x", "do_sample": False, "temperature": 0.7})
    assert (greedy.temperature, greedy.stop, greedy.max_new_tokens) == (0.0, ("x",), 256)
    sampled = generation_config({"temperature": 0.7, "top_p": 0.9, "max_gen_toks": 5, "seed": 3})
    assert (sampled.temperature, sampled.top_p, sampled.max_new_tokens, sampled.seed) == (0.7, 0.9, 5, 3)
    with pytest.raises(InputError, match="beams"):
        generation_config({"beams": 4})
