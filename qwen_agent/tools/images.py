"""Pictures by their header, and the few that are decoded, within bounds.

What a file is, and how large a picture is, is read from its first bytes without decoding anything: a file of 60 kB can
claim 100,000 x 100,000 pixels, and would fill 40 GB if it were believed. Only `decode` and `thumbnail` decode, after
that check, only the five formats known here, and the first frame only.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwen_agent.errors import InputError, MissingDependency

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 64_000_000  # decoded, at 4 bytes each, 256 MB
MAX_BYTES = 32 << 20

_SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "GIF": ".gif", "WEBP": ".webp", "BMP": ".bmp"}
_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # the start-of-frame markers
_JPEG_BARE = frozenset(range(0xD0, 0xD9)) | {0x01}  # markers without a length


@dataclass(frozen=True, slots=True)
class Header:
    """What a picture says of itself: ``format`` is Pillow's name ("PNG"), sizes are in pixels."""

    format: str
    width: int
    height: int

    @property
    def media_type(self) -> str:
        return f"image/{self.format.lower()}"

    @property
    def suffix(self) -> str:
        return _SUFFIXES[self.format]


def read_header(data: bytes) -> Header | None:
    """The header of a PNG, JPEG, GIF, WEBP or BMP file; None for anything else. Decodes nothing, never raises."""
    for form, read in (("PNG", _png), ("JPEG", _jpeg), ("GIF", _gif), ("WEBP", _webp), ("BMP", _bmp)):
        if size := read(data):
            return Header(form, *size) if min(size) > 0 else None
    return None


def check(data: bytes) -> Header:
    """The header of a picture that may be decoded. Raises InputError for what is none, or is too large."""
    header = read_header(data)
    if header is None:
        raise InputError("this is not a PNG, JPEG, GIF, WEBP or BMP picture")
    if header.width * header.height > MAX_PIXELS:
        raise InputError(
            f"the picture claims {header.width} x {header.height} pixels, more than the {MAX_PIXELS // 10**6} million "
            f"that are decoded: make it smaller"
        )
    if len(data) > MAX_BYTES:
        raise InputError(f"the picture has {len(data) >> 20} MiB, more than the {MAX_BYTES >> 20} that are read")
    return header


def decode(data: bytes, *, side: int | None = None) -> Image:
    """The picture upright in RGB (or RGBA, where it is transparent), at most ``side`` pixels long where that is given.

    Raises InputError as `check` does, and for a damaged file; MissingDependency without Pillow.
    """
    header = check(data)
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise MissingDependency("Pillow", "image") from None
    try:
        with Image.open(io.BytesIO(data), formats=(header.format,)) as file:
            if file.width * file.height > MAX_PIXELS:  # what the header said to us is not what Pillow read
                raise InputError("the picture contradicts itself about its size")
            if side:
                file.draft("RGB", (side, side))  # a JPEG is decoded at a fraction of its size
            picture = ImageOps.exif_transpose(_in_colours(file))
        if side:
            picture.thumbnail((side, side))
        return picture
    except InputError:
        raise
    except Exception as error:  # a border: decoders raise whatever they like on damaged files
        raise InputError(f"the {header.format} picture is damaged ({error})") from None


def _in_colours(picture: Image) -> Image:
    if picture.mode.startswith("I"):  # 16 bits of grey, which Pillow would cut off at 255
        picture = picture.convert("I").point(lambda value: value / 256).convert("L")
    return picture.convert("RGBA" if picture.has_transparency_data else "RGB")


def encode(picture: Image) -> bytes:
    """The picture as a PNG file."""
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def thumbnail(data: bytes, side: int = 256) -> bytes:
    """A PNG file of the picture, its longer side at most ``side`` pixels. Raises as `decode` does."""
    return encode(decode(data, side=side))


def _png(data: bytes) -> tuple[int, int] | None:
    if data[:16] != b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" or len(data) < 24:
        return None
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def _gif(data: bytes) -> tuple[int, int] | None:
    if data[:6] not in (b"GIF87a", b"GIF89a") or len(data) < 10:
        return None
    return int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")


def _bmp(data: bytes) -> tuple[int, int] | None:
    if data[:2] != b"BM" or len(data) < 26 or int.from_bytes(data[14:18], "little") not in (40, 52, 56, 64, 108, 124):
        return None
    width, height = (int.from_bytes(data[at : at + 4], "little", signed=True) for at in (18, 22))
    return width, abs(height)  # a negative height means: the first row is the top one


def _webp(data: bytes) -> tuple[int, int] | None:
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    kind, body = data[12:16], data[20:]
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L" and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    return None


def _jpeg(data: bytes) -> tuple[int, int] | None:
    if data[:3] != b"\xff\xd8\xff":
        return None
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _JPEG_SIZES:
            return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        if marker == 0xFF:  # padding
            at += 1
        elif marker in _JPEG_BARE:
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
