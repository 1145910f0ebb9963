"""The page over HTTP: what is served, to whom, and what is not."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import requests
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from talker import Talker, make_tools

from qwen_agent.limits import Limits
from qwen_agent.web.conversation import Choices
from qwen_agent.web.conversations import Conversations
from qwen_agent.web.shield import Shield, policy, rewritten
from qwen_agent.web.texts import LANGUAGES

Until = Callable[[Callable[[], object]], None]
KEY = "0" * 32


@pytest.mark.parametrize("code", LANGUAGES)
def test_each_language_has_a_page_that_names_no_other_host(served: Any, code: str) -> None:
    page = requests.get(f"{served.url}/web/{code}/", timeout=60, headers={"accept-encoding": "br, gzip"})
    assert page.status_code == 200
    page.encoding = "utf-8"
    assert f'lang="{code}"' in page.text
    assert LANGUAGES[code].welcome in page.text
    loading = re.findall(r"""(?:href|src|content)=["'](?:https?:)?//[^"']*""", page.text)
    assert loading == []
    rules = dict(rule.strip().split(" ", 1) for rule in page.headers["content-security-policy"].split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["connect-src"] == "'self'"
    assert "unsafe" not in rules["script-src"]
    assert page.headers["x-frame-options"] == "DENY"
    assert page.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    ("headers", "code"),
    [({}, "en"), ({"accept-language": "ja,en;q=0.5"}, "ja"), ({"cookie": "qwen-agent-language=zh"}, "zh")],
)
def test_the_way_to_the_language(served: Any, headers: dict[str, str], code: str) -> None:
    for address in ("/web", "/web/", f"/web/{code}"):
        answer = requests.get(served.url + address, headers=headers, allow_redirects=False, timeout=60)
        assert (answer.status_code, answer.headers["location"]) == (307, f"/web/{code}/")


@pytest.mark.parametrize(
    "address",
    [
        "gradio_api/file=https://example.com/x.png",
        "gradio_api/file=HTTPS:/example.com/x.png",
        "gradio_api/file=file:///etc/passwd",
        "gradio_api/proxy=https://example.com/",
        "gradio_api/vibe-code/",
        "gradio_api/run/predict",
        "gradio_api/openapi.json",
        "monitoring",
        "login",
        "nothing",
    ],
)
def test_routes_that_the_page_does_not_need_are_not_there(served: Any, address: str) -> None:
    for method in ("GET", "POST"):
        assert requests.request(method, f"{served.url}/web/en/{address}", timeout=60).status_code == 404


@pytest.mark.parametrize("path", ["/etc/passwd", "/web/en/../../etc/passwd", "pyproject.toml", "qwen_agent/errors.py"])
def test_files_of_the_machine_are_not_served(served: Any, path: str) -> None:
    assert requests.get(f"{served.url}/web/en/gradio_api/file={path}", timeout=60).status_code in (403, 404)


def test_the_conversation_can_be_downloaded_by_who_has_its_key(until: Until) -> None:
    fastapi = pytest.importorskip("fastapi")
    from qwen_agent.web.routes import add_routes

    conversations = Conversations(Talker(), make_tools, Choices(("calculator",)), system="", limits=Limits())
    app = fastapi.FastAPI()
    add_routes(app, conversations, "/web")
    with TestClient(app) as client:
        chat = conversations.open(KEY)
        chat.ask("What is 15% of 2,340?")
        until(lambda: not chat.running)
        for kind, words in (("md", "## 您"), ("json", '"answer": "351"')):
            answer = client.get(f"/web/conversation.{kind}", params={"key": chat.download_key, "language": "zh"})
            assert words in answer.text
            assert answer.headers["content-disposition"] == f'attachment; filename="conversation.{kind}"'
            assert "sandbox" in answer.headers["content-security-policy"]
        used = chat.used
        assert client.post("/web/here", headers={"x-conversation": KEY}).status_code == 204
        assert chat.used > used
        assert client.post("/web/here").status_code == 204
        for key, kind in ((KEY, "md"), ("", "md"), (chat.download_key, "html")):
            assert client.get(f"/web/conversation.{kind}", params={"key": key}).status_code == 404
    assert not conversations.root.exists()


def test_what_is_not_below_a_page_is_left_alone() -> None:
    routes = [Route(path, lambda request: HTMLResponse("<head></head>")) for path in ("/web/en/", "/web/english")]
    client = TestClient(Shield(Starlette(routes=routes), pages={"/web/en": "en"}, head="<!--ours-->"))
    assert "ours" in client.get("/web/en/").text
    other = client.get("/web/english")
    assert other.text == "<head></head>"
    assert "content-security-policy" not in other.headers


def test_a_script_that_was_not_in_the_page_may_not_run() -> None:
    page = rewritten(b'<html lang="en"><head><script>a()</script><link href="https://x.y/z"></head>', "ja", "<!---->")
    assert page == b'<html lang="ja"><head><!----><script>a()</script></head>'
    assert policy(page) != policy(page.replace(b"a()", b"b()"))
    assert "sha256-" not in policy(b'<script src="x.js"></script>')
