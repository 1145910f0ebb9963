"""The command `serve`: its options, and the whole of it as a process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from qwen_agent import cli
from qwen_agent.errors import InputError, MissingDependency
from qwen_agent.server.launch import check_installed
from qwen_agent.serving import credentials


@pytest.fixture
def file(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        path = tmp_path / "secret"
        path.write_text(text)
        return path

    return write


def test_keys_come_one_a_line_from_a_file_or_the_environment(file: Any) -> None:
    assert credentials(file("first-key\n\n  second-key \n"), None, None, None).keys == ("first-key", "second-key")
    assert credentials(None, "from-the-environment", None, None).keys == ("from-the-environment",)
    assert credentials(file("from-a-file"), "from-the-environment", None, None).keys == ("from-a-file",)
    assert not credentials(None, None, None, None)


def test_a_user_comes_with_a_password_that_may_hold_colons(file: Any) -> None:
    assert credentials(None, None, None, "anna:pa:ss").user == ("anna", "pa:ss")
    assert credentials(None, None, file("anna:secret\n"), "bert:other").user == ("anna", "secret")


@pytest.mark.parametrize(
    ("keys", "auth", "words"),
    [
        ("", None, "holds no key"),
        ("short", None, "at least 8"),
        ("with a blank in it", None, "cannot be used"),
        ("schlüssel-mit-umlaut", None, "cannot be used"),
        (None, "anna", "USER:PASSWORD"),
        (None, ":secret", "USER:PASSWORD"),
        (None, "anna:", "USER:PASSWORD"),
        (None, "", "USER:PASSWORD"),
    ],
)
def test_what_is_no_key_is_said(file: Any, keys: str | None, auth: str | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        credentials(file(keys) if keys is not None else None, None, None, auth)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        credentials(tmp_path / "nowhere", None, None, None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "key or token"),
        (["--server-name", "0.0.0.0", "--api-auth", "anna:secret"], "allowed_hosts"),
        (["--server-name", "example.com"], "IP address"),
        (["--api-key-file", "nowhere"], "nowhere"),
        (["--allow-origin", "*"], "allowed_origins"),
        (["--port", "0", "-c", "nowhere/at-all", "--offline"], "nowhere/at-all"),
        (["--port", "0", "--agent", "--tools", "nothing"], "nothing"),
        (["--server-port", "70000"], "70000"),
    ],
)
def test_options_that_cannot_be_are_refused_before_a_model_is_loaded(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fastapi")
    monkeypatch.setattr("qwen_agent.llm.weights.load_model", lambda *_: pytest.fail("a model was loaded"))
    monkeypatch.delenv("QWEN_AGENT_SERVER_KEY", raising=False)
    assert cli.main(["serve", *arguments]) in (1, 2)
    assert words in capsys.readouterr().err


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("fastapi", "uvicorn", "prometheus_client", "gradio"):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, gone=package: None if name == gone else object())
        with pytest.raises(MissingDependency, match=rf"{package} .*\[(server|webui)\]"):
            check_installed(web=True)
    check_installed(web=False)


def test_it_serves_with_the_options_of_2023_and_ends_with_ctrl_c(file: Any) -> None:
    pytest.importorskip("fastapi")
    command = [
        sys.executable,
        "-m",
        "qwen_agent",
        "serve",
        "-c",
        "embedded",
        "--cpu-only",
        "--server-name",
        "127.0.0.1",
    ]
    options = ["--server-port", "0", "--api-auth", "anna:secret", "--agent", "--tools", "calculator"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stderr is not None
            said: list[str] = []
            for line in server.stderr:
                said.append(line)
                if "Serving" in line:
                    break
            url = re.search(r"http://\S+", said[-1])
            assert url is not None, said
            assert "every user of this machine" in said[0]
            request = urllib.request.Request(f"{url[0]}/models", headers={"Authorization": "Basic YW5uYTpzZWNyZXQ="})
            with urllib.request.urlopen(request, timeout=60) as answer:
                listed = json.load(answer)["data"]
            assert [model["id"] for model in listed] == ["embedded", "react-agent"]
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(f"{url[0]}/models", timeout=60)
            server.send_signal(signal.SIGINT)
            rest = server.stderr.read()
            assert server.wait(30) == 0
            assert "GET /v1/models 200" in rest
            assert "Traceback" not in rest
        finally:
            server.kill()
