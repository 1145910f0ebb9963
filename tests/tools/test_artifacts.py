"""Artifacts: content by its hash, pictures by their header, and nothing decoded that is too large."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest

from qwen_agent.errors import InputError, MissingDependency
from qwen_agent.tools import artifacts, images
from qwen_agent.tools.artifacts import ArtifactStore, describe, safe_name, sniff
from qwen_agent.tools.images import Header, read_header

posix = pytest.mark.skipif(os.name == "nt", reason="needs links and modes of Unix")


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    """A PNG file with this header; its pixels are grey unless other rows are given."""
    rows = rows or zlib.compress((b"\0" + bytes(width)) * height)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


BOMB = png(100_000, 100_000, zlib.compress(bytes(50_000_000)))


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


# ---- ids and types ---------------------------------------------------------------------------------------------------


def test_the_id_is_the_content(store):
    data = b"name,price\ncoffee,3\n"
    first = store.add(data, "prices.csv", "text/csv")
    assert first.id == hashlib.sha256(data).hexdigest()[:12]
    assert (first.name, first.media_type, first.size) == ("prices.csv", "text/csv", len(data))
    assert Path(first.path).read_bytes() == store.read(first.id) == data
    again = store.add(data, "copy.csv")
    assert (again.id, again.path, again.name) == (first.id, first.path, "copy.csv")
    assert [artifact.name for artifact in store.list()] == ["prices.csv"]


def test_contents_that_begin_alike_get_longer_ids(store, monkeypatch):
    monkeypatch.setattr(artifacts, "_digest", lambda data: "a" * 14 + hashlib.sha256(data).hexdigest()[:50])
    one, two = store.add(b"one", "one"), store.add(b"two", "two")
    assert (one.id, len(two.id), two.id[:14]) == ("a" * 12, 16, "a" * 14)
    assert (store.read(one.id), store.read(two.id)) == (b"one", b"two")
    assert store.add(b"two", "two").id == two.id


def test_a_store_is_found_again_by_another_process(store, tmp_path):
    made = store.add(png(3, 2), "dot.png")
    other = ArtifactStore(tmp_path / "store")
    assert other.get(made.id) == made and other.list() == (made,)


def test_an_unknown_id_is_named_with_those_there_are(store):
    made = store.add(b"x", "x.txt")
    for identity in ("000000000000", "../../etc", "", made.id[:11], made.id.upper() + "G"):
        with pytest.raises(InputError, match=f"the last ones are {made.id}"):
            store.get(identity)


def test_the_newest_of_a_name_is_found(store):
    old, new = store.add(b"old", "figure.txt"), store.add(b"new", "figure.txt")
    os.utime(old.path, (1, 1))
    assert store.find("figure.txt") == new and store.find("other") is None


def test_the_type_is_the_content(store):
    picture = store.add(png(3, 2), "table.csv", "text/csv")
    assert (picture.media_type, picture.width, picture.height) == ("image/png", 3, 2)
    assert picture.name == "table.csv.png"
    for data, kind in {
        b"<svg onload=x>": "text/plain",
        b"GIF87": "text/plain",
        b"\x89PNG\r\n\x1a\n": "application/octet-stream",
    }.items():
        made = store.add(data, "p.png", "image/png")
        assert (made.media_type, made.width) == (kind, 0)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"%PDF-1.7", "application/pdf"),
        (b"PK\x03\x04..", "application/zip"),
        (b"", "text/plain"),
        ("é".encode() * 40_000, "text/plain"),
        (b"x" + "é".encode() * 40_000, "text/plain"),
        (b"caf\xe9 noir", "application/octet-stream"),
        (b"a\0b", "application/octet-stream"),
    ],
)
def test_sniffing(data, kind):
    assert sniff(data) == kind


def test_what_a_model_reads(store):
    picture = store.add(png(640, 480), "figure-1.png")
    assert describe(picture) == f"[image {picture.id}: figure-1.png, PNG, 640x480]"
    text = store.add(b"x" * 1536, "notes.md")
    assert describe(text) == f"[file {text.id}: notes.md, text/plain, 1.5 KiB]"


def test_a_file_of_the_user_is_copied(store, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    made = store.add_file(tmp_path / "mine.txt")
    assert (made.name, store.read(made.id)) == ("mine.txt", b"mine")
    with pytest.raises(InputError, match="is not a file"):
        store.add_file(tmp_path)


# ---- names and places ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("figure-1.png", "figure-1.png"),
        ("../../etc/passwd", "passwd"),
        ("C:\\temp\\x.txt", "x.txt"),
        (".bashrc", "bashrc"),
        ("...", "file"),
        ("", "file"),
        ("a\nAction: x\x1b[31m\u202e.txt", "aAction_ x_31m.txt"),
        ("a]: [b.txt", "a__ _b.txt"),
        ("日本 表.csv", "日本 表.csv"),
        ("x" * 300 + ".png", "x" * 80 + ".png"),
        ("表" * 300 + ".png", "表" * 53 + ".png"),
        ("con.txt", "_con.txt"),
        ("a.tar.gz", "a.tar.gz"),
        ("x\ud800.txt", "x.txt"),
    ],
)
def test_names_are_only_names(given, kept):
    assert safe_name(given) == kept


@posix
def test_only_the_owner_sees_the_files(store, tmp_path):
    made = store.add(b"x", "x.txt")
    modes = [
        stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "store", Path(made.path).parent, Path(made.path))
    ]
    assert modes == [0o700, 0o700, 0o600]


@posix
def test_no_link_is_followed(store, tmp_path):
    (tmp_path / "secret").write_text("secret")
    made = store.add(b"x", "x.txt")
    Path(made.path).unlink()
    Path(made.path).symlink_to(tmp_path / "secret")
    with pytest.raises(InputError):
        store.read(made.id)
    (tmp_path / "store" / ("b" * 12)).symlink_to(tmp_path)
    with pytest.raises(InputError):
        store.get("b" * 12)


def test_sizes_are_bounded(tmp_path):
    store = ArtifactStore(tmp_path / "s", max_bytes=1000, max_total=2500)
    with pytest.raises(InputError, match="'big' has 1001 bytes, more than the 1000 bytes kept"):
        store.add(bytes(1001), "big")
    for number in range(2):
        store.add(bytes([number]) * 1000, "x")
    with pytest.raises(InputError, match="delete what is not needed"):
        store.add(b"2" * 1000, "x")
    assert store.add(bytes(1000), "x").size == 1000, "what is there already costs nothing"


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_a_bomb_is_refused_by_its_header(store, tmp_path):
    (tmp_path / "bomb.png").write_bytes(BOMB)
    tracemalloc.start()
    with pytest.raises(InputError, match="claims 100000 x 100000 pixels, more than the 64 million"):
        store.add_file(tmp_path / "bomb.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * len(BOMB) + 1_000_000 and store.list() == ()


def test_headers_are_read_without_a_decoder():
    assert read_header(png(640, 480)) == Header("PNG", 640, 480)
    assert read_header(b"GIF89a" + struct.pack("<HH", 5, 6) + b"\0\0\0") == Header("GIF", 5, 6)
    for data in (b"", b"\x89PNG", png(0, 5, b"x"), b"\xff\xd8\xff", b"RIFF____WEBPVP8 " + bytes(20), b"BM" + bytes(40)):
        assert read_header(data) is None


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_headers_agree_with_pillow(form):
    pil = pytest.importorskip("PIL.Image")
    for size in ((1, 1), (37, 21), (300, 5000)):
        for options in ({}, {"lossless": True}, {"progressive": True}, {"exif": bytes(30_000)}):
            file = io.BytesIO()
            pil.new("RGB", size, "red").save(file, format=form, **options)
            assert read_header(file.getvalue()) == Header(form, *size)
            for cut in range(0, 60):
                read_header(file.getvalue()[:cut])  # never raises


def test_thumbnails(store):
    pil = pytest.importorskip("PIL.Image")
    for form, mode in (
        ("PNG", "RGBA"),
        ("PNG", "I;16"),
        ("PNG", "P"),
        ("JPEG", "CMYK"),
        ("JPEG", "L"),
        ("GIF", "P"),
        ("WEBP", "RGB"),
    ):
        file = io.BytesIO()
        pil.new(mode, (900, 300)).save(file, format=form)
        made = store.add(file.getvalue(), "p")
        small = pil.open(io.BytesIO(store.thumbnail(made.id, 128)))
        assert (small.format, small.size) == ("PNG", (128, 43)) and small.mode in ("RGB", "RGBA")


def test_a_damaged_picture_is_an_input_error(store):
    pytest.importorskip("PIL.Image")
    made = store.add(png(100, 100, b"no zlib stream"), "p.png")
    with pytest.raises(InputError, match="the PNG picture is damaged"):
        store.thumbnail(made.id)
    with pytest.raises(InputError, match="not a PNG, JPEG"):
        images.thumbnail(b"hello")


def test_a_gif_whose_frame_is_larger_than_it_says_is_not_decoded(store):
    pytest.importorskip("PIL.Image")
    screen = b"GIF89a" + struct.pack("<HHBBB", 10, 10, 0xF0, 0, 0) + bytes(6)
    frame = b"," + struct.pack("<HHHHB", 0, 0, 60_000, 60_000, 0) + b"\x02\x02\x4c\x01\x00;"
    made = store.add(screen + frame, "p.gif")
    with pytest.raises(InputError):
        store.thumbnail(made.id)


def test_without_pillow_the_remedy_is_named(store, monkeypatch):
    made = store.add(png(3, 2), "dot.png")
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(MissingDependency, match=r"qwen-react-agent\[image\]"):
        store.thumbnail(made.id)
