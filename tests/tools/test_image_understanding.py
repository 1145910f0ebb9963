"""What is in a picture: text of a drawn page, and tiny vision models with random weights that say random things."""

from __future__ import annotations

import base64
import doctest
import io
import json
import string
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from qwen_agent.errors import InputError, MissingDependency
from qwen_agent.tools.artifacts import ArtifactStore, describe
from qwen_agent.tools.image_understanding import (
    CAPTION,
    VisionBackend,
    _in_lines,
    endpoint_vision,
    image_description,
    image_text,
    local_vision,
)


def png(width: int = 8, height: int = 8) -> bytes:
    header = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return header + b"\x08\x02\x00\x00\x00" + bytes(40)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


def drawn(draw=lambda page, font: None, size=(900, 420), mode="RGB", form="PNG", **options) -> bytes:
    pil = pytest.importorskip("PIL.Image")
    from PIL import ImageDraw, ImageFont

    page = pil.new(mode, size, "white" if mode == "RGB" else None)
    draw(ImageDraw.Draw(page), ImageFont.load_default(size=30))
    file = io.BytesIO()
    page.save(file, format=form, **options)
    return file.getvalue()


# ---- which picture is meant ------------------------------------------------------------------------------------------


@pytest.fixture
def looked_at() -> list[tuple[bytes, str]]:
    return []


@pytest.fixture
def tool(store, looked_at, tmp_path):
    def answer(data: bytes, question: str) -> str:
        looked_at.append((data, question))
        return "A cat."

    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "own.png").write_bytes(png(3, 3))
    return image_description(VisionBackend(answer, False, 5), store, folder)


def test_a_picture_is_named_by_id_by_name_by_its_line_or_by_path(tool, store, looked_at):
    made = store.add(png(5, 5), "cat.png")
    for name in (made.id, "cat.png", describe(made), f" {made.id}\n", "sub/own.png"):
        assert tool.invoke({"image": name, "question": " What? "}).content == "A cat."
    assert looked_at == [(png(5, 5), "What?")] * 4 + [(png(3, 3), "What?")]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("000000000000", "There is no artifact '000000000000'"),
        ("none.png", "There is no 'none.png'."),
        ("../secret.png", "leads out of the folder"),
        ("/etc/passwd", "is an absolute path"),
        ("", "name of a file"),
        ("notes.txt", "This is not a PNG, JPEG, GIF, WEBP or BMP picture."),
        ("bomb.png", "claims 100000 x 100000 pixels"),
    ],
)
def test_what_is_no_picture_is_said(tool, tmp_path, looked_at, name, words):
    (tmp_path / "secret.png").write_bytes(png())
    (tmp_path / "folder" / "notes.txt").write_text("hello")
    (tmp_path / "folder" / "bomb.png").write_bytes(png(100_000, 100_000))
    result = tool.invoke({"image": name})
    assert not result.ok and words in result.content and looked_at == []


def test_a_link_to_a_picture_outside_is_not_followed(tool, tmp_path, looked_at):
    (tmp_path / "secret.png").write_bytes(png())
    try:
        (tmp_path / "folder" / "link.png").symlink_to(tmp_path / "secret.png")
    except OSError:
        pytest.skip("this user may make no links")
    assert not tool.invoke({"image": "link.png"}).ok and looked_at == []


def test_strangers_may_have_written_what_is_read(tool, store):
    assert (tool.untrusted, tool.side_effects) == (True, False)
    remote = image_description(endpoint_vision("http://localhost:1/v1", model="m"), store)
    assert (remote.untrusted, remote.side_effects) == (True, True)


def test_there_must_be_somewhere_to_look():
    with pytest.raises(InputError, match="give a store of artifacts or a folder"):
        image_description(VisionBackend(lambda data, question: "", False, 5))


# ---- text ------------------------------------------------------------------------------------------------------------


def test_without_rapidocr_the_remedy_is_named(store, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"rapidocr is not installed: pip install 'qwen-react-agent\[ocr\]'"):
        image_text(store)


def test_pieces_at_the_same_height_are_one_line():
    def box(left: float, top: float, height: float = 20) -> list[list[float]]:
        return [[left, top], [left + 50, top], [left + 50, top + height], [left, top + height]]

    found = [(box(300, 101), "12.50"), (box(0, 50), "Invoice"), (box(0, 98), "Total"), (box(0, 130), "end")]
    assert _in_lines(found) == "Invoice\nTotal  12.50\nend"


@pytest.fixture(scope="module")
def ocr(tmp_path_factory):
    pytest.importorskip("rapidocr")
    pytest.importorskip("onnxruntime")
    store = ArtifactStore(tmp_path_factory.mktemp("ocr"))
    return store, image_text(store)


@pytest.mark.filterwarnings("ignore")  # of OpenCV and its friends
def test_a_drawn_page_is_read_without_a_network(ocr, monkeypatch):
    def invoice(page, font):
        rows = ("Invoice 2041", "Date: 12 March 2024", "Coffee beans, 12 kg", "Total")
        for number, text in enumerate(rows):
            page.text((40, 40 + 90 * number), text, fill="black", font=font)
        page.text((600, 310), "183.40 EUR", fill="black", font=font)

    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr("socket.socket.connect", refuse)
    store, tool = ocr
    made = store.add(drawn(invoice), "page.png")
    result = tool.invoke({"image": made.id})
    assert result.ok, result
    assert result.content == "Invoice 2041\nDate: 12 March 2024\nCoffee beans, 12 kg\nTotal  183.40 EUR"


@pytest.mark.filterwarnings("ignore")
def test_a_page_that_is_transparent_turned_or_empty(ocr):
    def word(page, font):
        page.text((40, 40), "Sunflower 77", fill="black", font=font)

    store, tool = ocr
    transparent = store.add(drawn(word, mode="RGBA"), "a.png")
    assert tool.invoke({"image": transparent.id}).content == "Sunflower 77"
    pil = pytest.importorskip("PIL.Image")
    exif = pil.Exif()
    exif[274] = 6  # turned by a quarter, and said so, as phones do
    turned = pil.open(io.BytesIO(drawn(word))).rotate(90, expand=True)
    file = io.BytesIO()
    turned.save(file, format="JPEG", exif=exif.tobytes(), quality=95)
    made = store.add(file.getvalue(), "b.jpg")
    assert tool.invoke({"image": made.id}).content == "Sunflower 77"
    empty = store.add(drawn(), "c.png")
    assert tool.invoke({"image": empty.id}).content == "No text was found in the picture."


# ---- a vision model on this machine ----------------------------------------------------------------------------------


def test_a_vision_model_that_is_none_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(InputError, match=r"holds no config\.json"):
        local_vision(str(tmp_path))
    with pytest.raises(InputError, match="neither an existing folder nor a hub id"):
        local_vision("nothing")


SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def captioner(tmp_path_factory) -> Path:
    """BLIP with random weights: describes a picture in random letters."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("PIL")
    import torch

    torch.manual_seed(0)
    pieces = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces]
    tokenizer = transformers.BertTokenizer(vocab={piece: number for number, piece in enumerate(vocabulary)})
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
    text = {**SMALL, **ids, "vocab_size": len(vocabulary), "encoder_hidden_size": 16, "max_position_embeddings": 64}
    vision = {**SMALL, "image_size": 32, "patch_size": 16}
    config = transformers.BlipConfig(
        text_config=text, vision_config=vision, projection_dim=16, image_text_hidden_size=16
    )
    pictures = transformers.BlipImageProcessorPil(size={"height": 32, "width": 32})
    folder = tmp_path_factory.mktemp("captioner")
    transformers.BlipForConditionalGeneration(config).save_pretrained(folder)
    transformers.BlipProcessor(pictures, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chatter(tmp_path_factory) -> Path:
    """LLaVA with random weights and a chat template: answers in random characters."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("PIL")
    import tokenizers
    import torch

    torch.manual_seed(0)
    vocabulary = {"<s>": 0, "</s>": 1, "<pad>": 2, "<image>": 3, "<unk>": 4}
    for letter in string.printable:
        vocabulary.setdefault(letter, len(vocabulary))
    letters = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    letters.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=letters, additional_special_tokens=["<image>"], **special
    )
    part = "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}"
    template = "{% for m in messages %}{% for c in m['content'] %}" + part + "{% endfor %}{% endfor %}:"
    pictures = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = transformers.LlavaProcessor(
        *(pictures, tokenizer, 16, "default"), chat_template=template, num_additional_image_tokens=1
    )
    vision = transformers.CLIPVisionConfig(**{**SMALL, "num_hidden_layers": 2}, image_size=32, patch_size=16)
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    text = transformers.LlamaConfig(**SMALL, **ids, vocab_size=len(vocabulary), max_position_embeddings=512)
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=3)
    folder = tmp_path_factory.mktemp("chatter")
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore")  # of transformers about its own options
@pytest.mark.parametrize("kind", ["captioner", "chatter"])
def test_a_checkpoint_of_transformers_looks_at_pictures(kind, store, request):
    backend = local_vision(str(request.getfixturevalue(kind)), device="cpu")
    tool = image_description(backend, store)
    made = store.add(drawn(size=(50, 40)), "p.png")
    first = tool.invoke({"image": made.id})
    assert first.ok and first.content, first
    assert tool.invoke({"image": made.id}).content == first.content
    asked = tool.invoke({"image": made.id, "question": "a b"})
    assert asked.ok and asked.content != first.content


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_that_is_no_vision_model_is_said_so(store, tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("PIL")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    made = store.add(drawn(size=(50, 40)), "p.png")
    result = image_description(local_vision(str(tmp_path / "model")), store).invoke({"image": made.id})
    assert not result.ok and "cannot be loaded (" in result.content


# ---- a vision model behind an endpoint -------------------------------------------------------------------------------


@pytest.fixture
def service():
    """A server on loopback; ``replies`` are given in turn, ``seen`` is what it was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            server.seen.append((self.path, self.headers.get("authorization"), json.loads(body)))
            status, value = server.replies.pop(0)
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.replies = [], []
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_endpoint_is_sent_the_picture_without_its_metadata(service, store):
    pil = pytest.importorskip("PIL.Image")
    exif = pil.Exif()
    exif[270] = "taken at home"
    made = store.add(drawn(size=(3000, 1500), form="JPEG", exif=exif.tobytes()), "p.jpg")
    service.replies += [(200, {"choices": [{"message": {"content": " A red cat. "}}]})] * 2
    backend = endpoint_vision(f"http://127.0.0.1:{service.server_port}/v1", model="eye", key="sk-1")
    tool = image_description(backend, store)
    assert tool.invoke({"image": made.id}).content == "A red cat."
    assert tool.invoke({"image": made.id, "question": "Which colour?"}).content == "A red cat."
    (path, key, body), (_, _, other) = service.seen
    assert (path, key, body["model"]) == ("/v1/chat/completions", "Bearer sk-1", "eye")
    text, picture = body["messages"][0]["content"]
    assert text["text"] == CAPTION and other["messages"][0]["content"][0]["text"] == "Which colour?"
    kind, _, encoded = picture["image_url"]["url"].partition(",")
    sent = base64.b64decode(encoded)
    assert kind == "data:image/png;base64" and pil.open(io.BytesIO(sent)).size == (1280, 640)
    assert b"taken at home" not in sent


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ((401, {"error": {"message": "Wrong key."}}), "answered 401: Wrong key."),
        ((200, {"choices": []}), "sent no answer"),
        ((200, {"choices": [{"message": {"content": None}}]}), "The vision model said nothing."),
    ],
)
def test_what_an_endpoint_says_is_told(service, store, reply, words):
    made = store.add(drawn(size=(50, 40)), "p.png")
    service.replies.append(reply)
    backend = endpoint_vision(f"http://127.0.0.1:{service.server_port}/v1", model="eye")
    assert words in image_description(backend, store).invoke({"image": made.id}).content


@pytest.mark.filterwarnings("ignore")
def test_the_documentation_is_true():
    for module in ("rapidocr", "onnxruntime", "PIL"):
        pytest.importorskip(module)
    page = Path(__file__).parents[2] / "docs" / "tools" / "images.md"
    assert doctest.testfile(str(page), module_relative=False).failed == 0
