"""Downloads, against a server on this machine that speaks the hub's protocol."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qwen_agent.errors import CheckpointError, InputError, ModelNotFound
from qwen_agent.llm import load_model
from qwen_agent.llm.hub import EMBEDDED, resolve_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """A hub with one repository, team/tiny. The transfer of the file ``broken`` is cut at half its bytes, once."""

    url: str
    files: dict[str, bytes]
    broken: str = ""
    requests: list[tuple[str, str, str]] = field(default_factory=list)


@pytest.fixture
def hub(qwen1_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    folder = qwen1_folder()
    files = {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file()}
    files["README.md"] = b"not wanted"
    files["pytorch_model.bin"] = b"the same weights again, not wanted"
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler())
    hub = Hub(f"http://127.0.0.1:{server.server_port}", files)
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


def _handler() -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            hub: Hub = self.server.hub  # type: ignore[attr-defined]
            hub.requests.append((self.command, self.path, self.headers.get("Range", "")))
            path = self.path.partition("?")[0]
            if path.startswith("/api/models/team/tiny/tree/"):
                tree = [{"type": "file", "path": n, "size": len(c), "oid": n} for n, c in hub.files.items()]
                self._send(200, json.dumps(tree).encode(), {"Content-Type": "application/json"}, body)
            elif path.startswith("/api/models/team/tiny"):
                listing = {"id": "team/tiny", "sha": COMMIT, "siblings": [{"rfilename": n} for n in hub.files]}
                self._send(200, json.dumps(listing).encode(), {"Content-Type": "application/json"}, body)
            elif path.startswith("/team/tiny/resolve/"):
                self._send_file(hub, path.rpartition("/")[2], body)
            else:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)

        def _send_file(self, hub: Hub, name: str, body: bool) -> None:
            content = hub.files[name]
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-") or 0)
            status = 206 if start else 200
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            if body and hub.broken == name and not start:
                hub.broken = ""
                self.send_response(200)
                for key, value in (headers | {"Content-Length": str(len(content))}).items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                self.close_connection = True
                return
            self._send(status, content[start:], headers, body)

        def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

    return Handler


def test_a_hub_model_is_downloaded_and_loads(hub: Hub) -> None:
    folder = resolve_model("team/tiny", endpoint=hub.url)
    assert load_model(folder)(torch.arange(5)[None]).shape == (1, 5, 160)
    assert {f.name for f in folder.iterdir()} == {"config.json", "model.safetensors"}


def test_the_second_time_comes_from_the_cache_also_offline(hub: Hub) -> None:
    first = resolve_model("team/tiny", endpoint=hub.url)
    before = sum(method == "GET" and "resolve" in path for method, path, _ in hub.requests)
    assert resolve_model("team/tiny", endpoint=hub.url) == first
    assert sum(method == "GET" and "resolve" in path for method, path, _ in hub.requests) == before
    hub.requests.clear()
    assert resolve_model("team/tiny", endpoint=hub.url, offline=True) == first
    assert not hub.requests


def test_a_download_that_is_cut_off_goes_on_where_it_stopped(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    # What arrived is kept in units of this size, 10 MB by default: more than the whole tiny file.
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 64 * 1024)
    hub.broken = "model.safetensors"
    try:
        folder = resolve_model("team/tiny", endpoint=hub.url)
    except ModelNotFound as error:
        assert "run the same command again" in str(error)
        folder = resolve_model("team/tiny", endpoint=hub.url)
    assert load_model(folder)(torch.arange(5)[None]).shape == (1, 5, 160)
    half = len(hub.files["model.safetensors"]) // 2
    spans = [span for method, path, span in hub.requests if path.endswith("model.safetensors") and span]
    assert any(0 < int(span.removeprefix("bytes=").rstrip("-")) <= half for span in spans)


def test_a_repository_with_nothing_but_pytorch_bin(hub: Hub, qwen1_folder: Callable[..., Path]) -> None:
    weights = load_file(qwen1_folder() / "model.safetensors")
    torch.save(weights, qwen1_folder() / "pytorch_model.bin")
    hub.files["pytorch_model.bin"] = (qwen1_folder() / "pytorch_model.bin").read_bytes()
    del hub.files["model.safetensors"]
    folder = resolve_model("team/tiny", endpoint=hub.url)
    assert load_model(folder)(torch.arange(5)[None]).shape == (1, 5, 160)
    assert resolve_model("team/tiny", endpoint=hub.url, offline=True) == folder


def test_a_repository_that_does_not_exist(hub: Hub) -> None:
    with pytest.raises(ModelNotFound, match="no public hub model 'team/other'"):
        resolve_model("team/other", endpoint=hub.url)


def test_offline_without_a_copy(hub: Hub) -> None:
    with pytest.raises(ModelNotFound, match="in the local cache"):
        resolve_model("team/tiny", endpoint=hub.url, offline=True)


def test_a_hub_that_cannot_be_reached(hub: Hub) -> None:
    with pytest.raises(ModelNotFound, match=r"team/tiny"):
        resolve_model("team/tiny", endpoint="http://127.0.0.1:9")


def test_names_that_are_neither_folder_nor_hub_id(tmp_path: Path) -> None:
    assert resolve_model("embedded") == EMBEDDED
    assert resolve_model(tmp_path) == tmp_path
    for name in ("nonsense", "a/b/c", "./missing", "/missing/folder"):
        with pytest.raises(ModelNotFound, match="there is no model"):
            resolve_model(name)
    with pytest.raises(InputError, match="empty"):
        resolve_model(" ")
    file = tmp_path / "model.gguf"
    file.write_bytes(b"")
    with pytest.raises(ModelNotFound, match="is a file"):
        resolve_model(file)


def test_an_empty_folder_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a model folder"):
        load_model(tmp_path)
