"""Pictures from words: a tiny diffusion pipeline on this machine, and two kinds of service on a local server."""

from __future__ import annotations

import base64
import io
import json
import string
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from qwen_agent.errors import InputError, MissingDependency
from qwen_agent.tools.artifacts import ArtifactStore
from qwen_agent.tools.image_generation import (
    ImageBackend,
    ImageRequest,
    MadeImage,
    endpoint_images,
    image_generation,
    local_images,
    url_images,
)


def png(width: int = 8, height: int = 8) -> bytes:
    header = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return header + b"\x08\x02\x00\x00\x00" + bytes(40)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


# ---- the tool --------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked() -> list[ImageRequest]:
    return []


@pytest.fixture
def tool(store, asked):
    def make(request: ImageRequest) -> MadeImage:
        asked.append(request)
        return MadeImage(png(640, 480), "seed 7")

    return image_generation(ImageBackend(make, remote=False, seconds=5), store)


def test_the_result_is_an_artifact_and_one_line(tool, store, asked):
    result = tool.invoke({"prompt": " A red cat, on a mat! ", "width": 645, "height": 480, "steps": 3, "seed": 7})
    [made] = result.artifacts
    assert result.content == f"[image {made.id}: A-red-cat-on-a-mat.png, PNG, 640x480] seed 7"
    assert store.read(made.id) == png(640, 480)
    assert asked == [ImageRequest("A red cat, on a mat!", 640, 480, 3, 7)]


def test_what_is_not_asked_for_is_left_to_the_backend(tool, asked):
    assert tool.invoke({"prompt": "x"}).ok and asked == [ImageRequest("x")]


def test_a_remote_backend_is_a_side_effect(tool, store):
    assert (tool.name, tool.side_effects, tool.untrusted, tool.repeatable) == ("generate_image", False, False, True)
    assert image_generation(url_images("https://example.org/{prompt}"), store).side_effects


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompt": " "}, "The prompt is empty"),
        ({"prompt": "x" * 2000}, "at most 1500"),
        ({"prompt": "x", "width": 5000}, "width must be from 64 to 2048 pixels, or 0 for the usual, not 5000."),
        ({"prompt": "x", "height": -8}, "height must be"),
        ({"prompt": "x", "steps": 1000}, "steps must be from 1 to 150"),
        ({"prompt": "x", "seed": 2**40}, "seed must be"),
    ],
)
def test_what_cannot_be_made_is_said(tool, arguments, words):
    result = tool.invoke(arguments)
    assert not result.ok and words in result.content


def test_what_is_no_picture_is_not_kept(store):
    for data, words in (
        (b"<html>no", "No picture came back, but: '<html>no'"),
        (png(100_000, 100_000), "claims 100000"),
    ):
        backend = ImageBackend(lambda request, data=data: MadeImage(data), remote=True, seconds=5)
        result = image_generation(backend, store).invoke({"prompt": "x"})
        assert not result.ok and words in result.content
    assert store.list() == ()


# ---- services --------------------------------------------------------------------------------------------------------


class Service(ThreadingHTTPServer):
    """A server on loopback that answers with ``answer(method, path, body)`` and remembers what it was asked."""

    def __init__(self, answer: Callable[[str, str, bytes], tuple[int, str, bytes]]) -> None:
        self.answer, self.seen = answer, []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.seen.append((self.command, self.path, self.headers.get("authorization"), body))
        status, kind, data = self.server.answer(self.command, self.path, body)
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[..., Service]]:
    running: list[tuple[Service, threading.Thread]] = []

    def start(answer: Callable[[str, str, bytes], tuple[int, str, bytes]]) -> Service:
        service = Service(answer)
        thread = threading.Thread(target=service.serve_forever, args=(0.05,))
        thread.start()
        running.append((service, thread))
        return service

    yield start
    for service, thread in running:
        service.shutdown()
        thread.join()
        service.server_close()


def as_json(value: object, status: int = 200) -> tuple[int, str, bytes]:
    return status, "application/json", json.dumps(value).encode()


def test_an_endpoint_that_sends_base_64(serve, store):
    encoded = base64.b64encode(png(16, 24)).decode()
    service = serve(lambda *_: as_json({"data": [{"b64_json": encoded}]}))
    tool = image_generation(endpoint_images(f"{service.url}/v1/", model="tiny", key="sk-1"), store)
    result = tool.invoke({"prompt": "a cat", "width": 64, "seed": 5})
    assert result.ok and "PNG, 16x24]" in result.content and "sk-1" not in repr(tool.describe())
    [(method, path, key, body)] = service.seen
    assert (method, path, key) == ("POST", "/v1/images/generations", "Bearer sk-1")
    assert json.loads(body) == {"prompt": "a cat", "n": 1, "model": "tiny", "size": "64x64", "seed": 5}


def test_an_endpoint_that_sends_a_url(serve, store):
    def answer(method: str, path: str, body: bytes) -> tuple[int, str, bytes]:
        if method == "POST":
            return as_json({"data": [{"url": f"{service.url}/made.png"}]})
        return 200, "image/png", png(16, 24)

    service = serve(answer)
    assert image_generation(endpoint_images(f"{service.url}/v1"), store).invoke({"prompt": "a cat"}).ok
    assert [path for _, path, _, _ in service.seen] == ["/v1/images/generations", "/made.png"]
    assert service.seen[1][2] is None, "the key, if there is one, stays with the service"


def test_an_endpoint_cannot_lead_into_the_private_network(serve, store):
    inner = serve(lambda *_: (200, "image/png", png()))
    service = serve(lambda *_: as_json({"data": [{"url": f"{inner.url}/secret.png"}]}))
    result = image_generation(endpoint_images(f"{service.url}/v1"), store).invoke({"prompt": "x"})
    assert not result.ok and inner.seen == []


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (as_json({"error": {"message": "Your content was\nrefused."}}, 400), "answered 400: Your content was refused."),
        (as_json({"detail": "no such model"}, 404), "answered 404: no such model"),
        ((502, "text/html", b"<h1>Bad gateway"), "answered 502: <h1>Bad gateway"),
        ((200, "text/html", b"hello"), "answered 200: hello"),
        (as_json({"data": []}), "sent no picture"),
        (as_json([1]), "sent no picture"),
        (as_json({"data": [{"b64_json": "%%%"}]}), "not base 64"),
        (as_json({"data": [{"b64_json": "aGVsbG8="}]}), "No picture came back, but: 'hello'"),
        (as_json({"data": [{"url": "file:///etc/passwd"}]}), "http"),
    ],
)
def test_what_an_endpoint_says_is_told(serve, store, answer, words):
    service = serve(lambda *_: answer)
    result = image_generation(endpoint_images(f"{service.url}/v1"), store).invoke({"prompt": "x"})
    assert not result.ok and words in result.content


def test_a_service_behind_a_url(serve, store):
    service = serve(lambda *_: (200, "image/jpeg", png(16, 24)))
    backend = url_images(service.url + "/prompt/{prompt}?w={width}&h={height}&seed={seed}")
    result = image_generation(backend, store).invoke({"prompt": "50% of a/b? 猫 & dog", "width": 128, "seed": 9})
    assert result.ok and result.content.endswith("PNG, 16x24] seed 9")
    parts = urlsplit(service.seen[0][1])
    assert unquote(parts.path) == "/prompt/50% of a/b? 猫 & dog" and parts.path.count("/") == 2
    assert parse_qs(parts.query) == {"w": ["128"], "h": ["128"], "seed": ["9"]}


def test_a_service_behind_a_url_that_refuses(serve, store):
    service = serve(lambda *_: (429, "text/plain", b"slow down"))
    tool = image_generation(url_images(service.url + "/{prompt}"), store)
    assert tool.invoke({"prompt": "x"}).content == "The picture service at 127.0.0.1 answered 429."
    assert "use fewer words" in tool.invoke({"prompt": "猫" * 1400}).content


@pytest.mark.parametrize(
    "template", ["https://example.org/", "ftp://x/{prompt}", "https://x/{prompt}{key}", "https://x/{", ""]
)
def test_a_template_that_is_none_is_refused(template):
    with pytest.raises(InputError, match=r"is not a URL with \{prompt\} in it"):
        url_images(template)


@pytest.mark.parametrize("url", ["localhost:8000", "", "file:///v1", "http://"])
def test_a_base_url_that_is_none_is_refused(url):
    with pytest.raises(InputError, match="is not a base URL such as"):
        endpoint_images(url)


# ---- on this machine -------------------------------------------------------------------------------------------------


def test_without_diffusers_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"diffusers is not installed: pip install 'qwen-react-agent\[image\]'"):
        local_images("owner/name")


@pytest.fixture
def pretended(monkeypatch):
    """As if diffusers were installed, for what is checked before it is needed."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())


@pytest.mark.parametrize("model", ["nowhere", "a/b/c", "./here", "~/there", ""])
def test_a_model_that_is_none_is_refused_at_once(pretended, model):
    with pytest.raises(InputError, match="neither an existing folder nor a hub id"):
        local_images(model)


def test_a_folder_that_is_no_checkpoint_is_refused_at_once(pretended, tmp_path):
    with pytest.raises(InputError, match=r"holds no model_index\.json"):
        local_images(str(tmp_path))


@pytest.fixture(scope="module")
def tiny_pipeline(tmp_path_factory) -> Path:
    """A Stable Diffusion checkpoint with random weights: 0.4 MB, and a vocabulary of letters."""
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    import torch

    torch.manual_seed(0)
    down, up = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=down,
        up_block_types=up,
        cross_attention_dim=16,
        attention_head_dim=4,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=[8] * 4,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=4,
        norm_num_groups=4,
    )
    letters = [letter + end for letter in string.ascii_lowercase for end in ("", "</w>")]
    vocabulary = {token: number for number, token in enumerate(["<|startoftext|>", "<|endoftext|>", *letters])}
    text_config = transformers.CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        max_position_embeddings=20,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=transformers.CLIPTextModel(text_config),
        tokenizer=transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=20),
        unet=unet,
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = tmp_path_factory.mktemp("pipeline")
    pipeline.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore")  # of diffusers and transformers about each other
def test_a_diffusers_checkpoint_draws(tiny_pipeline, store):
    steps: list[tuple[int, int]] = []
    backend = local_images(str(tiny_pipeline), device="cpu", on_step=lambda done, total: steps.append((done, total)))
    assert not backend.remote
    tool = image_generation(backend, store)
    first = tool.invoke({"prompt": "a red cat", "width": 64, "height": 72, "steps": 3, "seed": 1})
    assert first.ok, first
    assert first.content.endswith("a-red-cat.png, PNG, 64x72] seed 1")
    assert steps == [(1, 3), (2, 3), (3, 3)]
    again = tool.invoke({"prompt": "a red cat", "width": 64, "height": 72, "steps": 3, "seed": 1})
    other = tool.invoke({"prompt": "a red cat", "width": 64, "height": 72, "steps": 3, "seed": 2})
    assert again.artifacts[0].id == first.artifacts[0].id != other.artifacts[0].id
    own = tool.invoke({"prompt": "a red cat", "steps": 1})
    assert "PNG, 64x64] seed " in own.content, "the checkpoint's own size, and a seed to repeat it with"
    pil = pytest.importorskip("PIL.Image")
    assert pil.open(io.BytesIO(store.read(first.artifacts[0].id))).convert("RGB").size == (64, 72)


@pytest.mark.filterwarnings("ignore")
def test_drawing_stops_when_nobody_waits_any_more(tiny_pipeline, store):
    steps: list[int] = []
    begun, settled = threading.Event(), threading.Event()

    def on_step(done: int, total: int) -> None:
        steps.append(done)
        begun.set()
        settled.wait(20)

    tool = image_generation(local_images(str(tiny_pipeline), on_step=on_step), store)
    result = tool.invoke({"prompt": "x", "steps": 50}, cancelled=begun.is_set)
    settled.set()
    assert result.content == "generate_image was cancelled."
    for thread in threading.enumerate():
        if thread.name == "tool generate_image":
            thread.join(20)
    assert len(steps) < 5 and store.list() == ()


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_checkpoint_is_said_so(tiny_pipeline, store, tmp_path):
    (tmp_path / "model_index.json").write_text((tiny_pipeline / "model_index.json").read_text())
    result = image_generation(local_images(str(tmp_path)), store).invoke({"prompt": "x"})
    assert not result.ok and "cannot be loaded (" in result.content
