"""/v1/completions and the tokenizer's routes, through a real socket; and what lm-eval asks of them."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from qwen_agent.llm.config import GenerationConfig
from qwen_agent.llm.local import LocalRuntime
from qwen_agent.llm.runtime import text_of
from qwen_agent.llm.tokenizer import encode_prompt
from qwen_agent.prompt import chatml
from qwen_agent.types import Text

PATH = "/v1/completions"
FRANCE = "The capital of France is"
ASKED = {"model": "tiny", "prompt": FRANCE, "max_tokens": 6, "temperature": 0}


def completed(server: Any, **changes: Any) -> dict[str, Any]:
    reply = server.post(PATH, ASKED | changes)
    assert reply.status == 200, reply.body
    return reply.json


def test_a_text_is_continued_as_by_the_runtime_alone(server: Any, embedded: LocalRuntime) -> None:
    told = completed(server)
    *_, last = embedded.stream((Text(FRANCE),), GenerationConfig(max_new_tokens=6))
    choice = {"index": 0, "text": text_of(last.output), "logprobs": None, "finish_reason": "length"}
    assert told["choices"] == [choice]
    usage = told["usage"]
    tokens = embedded.count_tokens((Text(FRANCE),))
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (tokens, 6, tokens + 6)
    assert told["object"] == "text_completion" and told["model"] == "tiny" and told["id"].startswith("cmpl-")


def test_token_ids_and_lists_are_prompts_too(server: Any, embedded: LocalRuntime) -> None:
    ids = embedded.tokenizer.encode(FRANCE)
    other = embedded.tokenizer.encode("Once upon a time")
    alone = [completed(server, prompt=prompt)["choices"][0]["text"] for prompt in (FRANCE, "Once upon a time")]
    assert completed(server, prompt=ids)["choices"][0]["text"] == alone[0]
    for prompts in ([FRANCE, "Once upon a time"], [ids, other]):
        told = completed(server, prompt=prompts)
        assert [(choice["index"], choice["text"]) for choice in told["choices"]] == list(enumerate(alone))
        assert told["usage"]["prompt_tokens"] == len(ids) + len(other)


def test_control_tokens_come_from_ids_and_never_from_text(server: Any, embedded: LocalRuntime) -> None:
    prompt = chatml("Say hello to Anna.", (), "You are a helpful assistant.")
    *_, last = embedded.stream(prompt, GenerationConfig(max_new_tokens=6))
    ids = encode_prompt(embedded.tokenizer, prompt)
    assert completed(server, prompt=ids)["choices"][0]["text"] == text_of(last.output)
    told = server.post("/tokenize", {"prompt": "<|im_start|>system"}).json
    assert not set(told["tokens"]) & set(embedded.tokenizer.specials.values())


def test_stops_end_it_and_are_not_part_of_it(server: Any) -> None:
    whole = completed(server, max_tokens=12)["choices"][0]["text"]
    stop = whole[4:7]
    told = completed(server, max_tokens=12, stop=[stop, "never"])["choices"][0]
    assert (told["text"], told["finish_reason"]) == (whole[: whole.find(stop)], "stop")
    assert completed(server, max_tokens=12, stop=stop)["choices"][0]["text"] == told["text"]


@pytest.mark.parametrize(
    "changes", [{}, {"echo": True}, {"logprobs": 2}, {"echo": True, "logprobs": 1}, {"prompt": ["a", "b"]}]
)
def test_a_stream_says_the_same(server: Any, changes: dict[str, Any]) -> None:
    whole = completed(server, **changes)
    reply = server.post(PATH, ASKED | changes | {"stream": True, "stream_options": {"include_usage": True}})
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.body.endswith(b"data: [DONE]\n\n")
    *events, last = reply.events
    assert last["choices"] == [] and last["usage"] == whole["usage"] | {
        "prompt_tokens_details": last["usage"]["prompt_tokens_details"]
    }
    assert {event["id"] for event in events} == {last["id"]}
    assert all(event["usage"] is None for event in events)
    for choice in whole["choices"]:
        own = [event["choices"][0] for event in events if event["choices"][0]["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in own) == choice["text"]
        assert [piece["finish_reason"] for piece in own if piece["finish_reason"]] == [choice["finish_reason"]]
        if choice["logprobs"] is None:
            assert all(piece["logprobs"] is None for piece in own)
            continue
        for name, values in choice["logprobs"].items():
            pieces = [piece["logprobs"][name] for piece in own if piece["logprobs"]]
            if name in ("tokens", "text_offset"):
                assert list(itertools.chain.from_iterable(pieces)) == values


def test_echoed_tokens_have_logprobs_and_places(server: Any, embedded: LocalRuntime) -> None:
    choice = completed(server, echo=True, logprobs=2)["choices"][0]
    told = choice["logprobs"]
    count = len(embedded.tokenizer.encode(FRANCE)) + 6
    assert {len(values) for values in told.values()} == {count}
    assert "".join(told["tokens"]) == choice["text"]
    assert [
        choice["text"][at:].startswith(token) for at, token in zip(told["text_offset"], told["tokens"], strict=True)
    ]
    assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
    for logprob, top, token in list(zip(told["token_logprobs"], told["top_logprobs"], told["tokens"], strict=True))[1:]:
        assert logprob <= 0 and top[token] == logprob
        assert 2 <= len(top) <= 3


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_the_prompt_alone_can_be_echoed(server: Any, max_tokens: int) -> None:
    choice = completed(server, echo=True, max_tokens=max_tokens)["choices"][0]
    assert choice["text"].startswith(FRANCE)
    measured = completed(server, echo=True, max_tokens=max_tokens, logprobs=1)
    assert len(measured["choices"][0]["logprobs"]["tokens"]) == 5 + max_tokens
    assert measured["usage"]["completion_tokens"] == max_tokens
    assert completed(server, max_tokens=0)["choices"][0] == {
        "index": 0, "text": "", "logprobs": None, "finish_reason": "length"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"suffix": "the end"}, "suffix is not supported"),
        ({"n": 2}, "one completion is made"),
        ({"best_of": 3}, "one completion is made"),
        ({"logit_bias": {"50": 10}}, "logit_bias"),
        ({"prompt": ""}, "empty"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [999_999]}, "token 999999 is not in the vocabulary"),
        ({"prompt": [-1]}, "greater than or equal to 0"),
        ({"prompt": [[1, 2], [999_999]]}, "token 999999"),
        ({"prompt": ["x"] * 129}, "128"),
        ({"prompt": None}, "prompt"),
        ({"logprobs": 21}, "logprobs"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"prompt": "word " * 9000}, "window is 8192"),
    ],
)
def test_what_cannot_be_asked_is_a_clear_400(server: Any, changes: dict[str, Any], words: str) -> None:
    for stream in (False, True):
        refused = server.post(PATH, ASKED | changes | {"stream": stream})
        assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
        assert words in refused.error["message"]


def test_the_openai_client_completes(server: Any) -> None:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="any") as client:
        whole = client.completions.create(**ASKED, echo=True, logprobs=1)
        assert whole.choices[0].text.startswith(FRANCE)
        assert whole.choices[0].logprobs.token_logprobs[0] is None
        pieces = [chunk.choices[0].text for chunk in client.completions.create(**ASKED, stream=True)]
        assert FRANCE + "".join(pieces) == whole.choices[0].text
        assert client.models.retrieve("tiny").id == "tiny"
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            client.completions.create(**ASKED | {"model": "other"})


# ---- models, tokens


def test_models_are_listed_and_the_name_of_2023_is_understood(server: Any) -> None:
    listed = server.ask("GET", "/v1/models").json
    assert [model["id"] for model in listed["data"]] == ["tiny"]
    assert listed["data"][0]["max_model_len"] == 8192
    assert server.ask("GET", "/v1/models/tiny").json == listed["data"][0]
    assert server.ask("GET", "/v1/models/gpt-3.5-turbo").json["id"] == "gpt-3.5-turbo"
    assert completed(server, model="gpt-3.5-turbo")["model"] == "gpt-3.5-turbo"
    missing = server.post(PATH, ASKED | {"model": "gpt-4"})
    assert (missing.status, missing.error["code"], missing.error["param"]) == (404, "model_not_found", "model")


def test_tokens_there_and_back(server: Any, embedded: LocalRuntime) -> None:
    text = "Grüße, 世界! 🙂 <|endoftext|>"
    told = server.post("/tokenize", {"prompt": text, "return_token_strs": True}).json
    assert told["tokens"] == embedded.tokenizer.encode(text)
    assert told["count"] == len(told["tokens"]) == len(told["token_strs"])
    assert told["max_model_len"] == 8192
    assert server.post("/detokenize", {"tokens": told["tokens"]}).json == {"prompt": text}
    assert server.post("/detokenize", {"tokens": []}).json == {"prompt": ""}
    refused = server.post("/detokenize", {"tokens": [10**9]})
    assert (refused.status, refused.error["type"]) == (400, "invalid_request_error")
    info = server.ask("GET", "/tokenizer_info").json
    assert info["eos_token"] == "<|im_end|>"
    ids = {entry["content"]: int(token) for token, entry in info["added_tokens_decoder"].items()}
    assert ids == dict(embedded.tokenizer.specials)


def test_lm_eval_measures_what_the_runtime_measures(server: Any, embedded: LocalRuntime) -> None:
    """Its own client, with its own parsing: the likelihood of answers is the runtime's score."""
    pytest.importorskip("lm_eval")
    pytest.importorskip("tenacity")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    client = LocalCompletionsAPI(
        base_url=f"http://127.0.0.1:{server.port}{PATH}", model="tiny", tokenizer_backend="remote", max_length=2048
    )
    answers = (" Paris", " a large city in the north")
    asked = [Instance("loglikelihood", {}, (FRANCE, answer), i) for i, answer in enumerate(answers)]
    told = client.loglikelihood(asked, disable_tqdm=True)
    scores = embedded.score((Text(FRANCE),), [(Text(answer),) for answer in answers])
    for (logprob, greedy), score, expected in zip(told, scores, (True, False), strict=True):
        assert logprob == pytest.approx(score, abs=0.6)  # half precision, read in other pieces
        assert greedy is expected
    text = client.generate_until(
        [Instance("generate_until", {}, (FRANCE, {"until": ["."], "max_gen_toks": 8}), 0)], disable_tqdm=True
    )
    assert text == [completed(server, max_tokens=8, stop=["."])["choices"][0]["text"]]


def test_an_echo_is_followed_by_a_token_even_where_the_text_ends_at_once(server: Any, embedded: LocalRuntime) -> None:
    """lm-evaluation-harness drops one token after the echoed ones, whatever it is."""
    ids = embedded.tokenizer.encode("The answer is 4.")
    *_, last = embedded.stream((Text("The answer is 4."),), GenerationConfig(max_new_tokens=1))
    assert last.usage.generated_tokens == 0
    measured = completed(server, prompt=ids, echo=True, logprobs=1, max_tokens=1)["choices"][0]["logprobs"]
    assert {len(values) for values in measured.values()} == {len(ids) + 1}
    assert measured["token_logprobs"][-1] is None and None not in measured["token_logprobs"][1:-1]
