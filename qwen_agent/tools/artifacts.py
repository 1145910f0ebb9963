"""Where pictures and files lie that tools make and read: a folder of their own, named by what is in them.

Promises
- the_id_is_the_content: the first 12 hex digits of its SHA-256, more of them where two contents begin alike.
- the_type_is_the_content: a picture is what begins like one, whatever its name or the caller says; its size in pixels
  is read from the header, and one too large to decode is refused without being decoded.
- names_are_only_names: no path, no control character, no leading dot; a picture's ends as its format does.
- nothing_else_is_touched: files are 0600 in folders 0700, written whole or not at all, and no link is followed.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from qwen_agent.errors import InputError
from qwen_agent.tools import images
from qwen_agent.tools.beneath import Entry, Folder, read_at_most, shown, size_text
from qwen_agent.types import Artifact

MAX_BYTES = images.MAX_BYTES
MAX_TOTAL = 1 << 30
MAX_NAME_CHARS = 80

_ID_DIGITS = 12
_ID = re.compile(r"[0-9a-f]{12,64}")
_MEDIA_TYPE = re.compile(r"(?!image/)[a-z]+/[a-z0-9][a-z0-9.+-]{0,80}")
_NOT_IN_NAMES = re.compile(r'[<>:"|?*\[\]]')  # what some file system forbids, and what closes the line a model reads
_MAGIC = ((b"%PDF-", "application/pdf"), (b"PK\x03\x04", "application/zip"), (b"\x1f\x8b", "application/gzip"))
_UNKNOWN = "application/octet-stream"
_VAGUE = ("text/plain", _UNKNOWN)


class ArtifactStore:
    """Artifacts in a folder, which is made if need be; several processes may share it.

    ``max_bytes`` bounds one artifact, ``max_total`` all of them. Every method raises InputError with the reason.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES, max_total: int = MAX_TOTAL
    ) -> None:
        self.max_bytes = max_bytes
        self._max_total = max_total
        self._folder = Folder(folder, create=True)
        self._known: dict[str, Artifact] = {}

    def add(self, data: bytes, name: str, media_type: str | None = None) -> Artifact:
        """Keep this content. The same content is kept once, under the first name that it came with.

        ``media_type`` is believed only where the content does not tell and only for what is no picture.
        """
        if len(data) > self.max_bytes:
            raise InputError(
                f"{shown(name)} has {size_text(len(data))}, more than the {size_text(self.max_bytes)} kept"
            )
        made = artifact_of(data, name, self._folder.path, media_type)
        identity = self._free_id(data)
        if found := self._entry(identity):
            return replace(made, id=identity, path=str(self._folder.path / identity / found.name))
        used = sum(entry.size for _, entry in self._entries())
        if used + len(data) > self._max_total:
            raise InputError(
                f"the folder '{self._folder.path}' holds {size_text(used)} already: delete what is not needed"
            )
        self._folder.write(f"{identity}/{made.name}", data, overwrite=True, mode=0o600)
        return replace(made, id=identity, path=str(self._folder.path / identity / made.name))

    def add_file(self, path: str | os.PathLike[str]) -> Artifact:
        """Keep a copy of one of the user's own files."""
        file = Path(path).expanduser()
        if not file.is_file():  # a pipe would be waited for
            raise InputError(f"'{file}' is not a file")
        with file.open("rb") as opened:
            return self.add(read_at_most(opened, self.max_bytes + 1), file.name)

    def get(self, identity: str) -> Artifact:
        """The artifact of this id."""
        found = self._entry(identity)
        if found is None:
            known = ", ".join(artifact.id for artifact in self.list()[-5:])
            raise InputError(
                f"there is no artifact {shown(identity)}" + (f": the last ones are {known}" if known else "")
            )
        if identity not in self._known:
            place = self._folder.path / identity / found.name
            self._known[identity] = replace(artifact_of(self._data(identity, found), found.name, place), id=identity)
        return self._known[identity]

    def find(self, name: str) -> Artifact | None:
        """The newest artifact that was first kept under this name."""
        found = [(entry.changed, identity) for identity, entry in self._entries() if entry.name == name]
        return self.get(max(found)[1]) if found else None

    def read(self, identity: str) -> bytes:
        """The content of the artifact of this id."""
        artifact = self.get(identity)
        return self._folder.read(f"{identity}/{Path(artifact.path).name}", self.max_bytes)

    def thumbnail(self, identity: str, side: int = 256) -> bytes:
        """A small PNG of a picture. Raises MissingDependency without Pillow."""
        return images.thumbnail(self.read(identity), side)

    def list(self) -> tuple[Artifact, ...]:
        """Every artifact, oldest first."""
        ordered = sorted(self._entries(), key=lambda found: (found[1].changed, found[0]))
        return tuple(self.get(identity) for identity, _ in ordered)

    def _free_id(self, data: bytes) -> str:
        """The shortest id that no other content has."""
        digest = _digest(data)
        for length in range(_ID_DIGITS, len(digest) + 1, 4):
            found = self._entry(digest[:length])
            if found is None or (found.size == len(data) and self._data(digest[:length], found) == data):
                return digest[:length]
        raise InputError(f"the artifact {digest} was changed on disk: delete it")

    def _data(self, identity: str, entry: Entry) -> bytes:
        return self._folder.read(f"{identity}/{entry.name}", max(entry.size, self.max_bytes))

    def _entry(self, identity: str) -> Entry | None:
        """The one file in an artifact's folder."""
        if not _ID.fullmatch(identity) or not self._folder.exists(identity):
            return None
        files = [entry for entry in self._folder.entries(identity) if entry.kind == "file" and entry.name[0] != "."]
        return files[0] if files else None

    def _entries(self) -> Iterator[tuple[str, Entry]]:
        for folder in self._folder.entries():
            if folder.kind == "folder" and (entry := self._entry(folder.name)):
                yield folder.name, entry


def artifact_of(data: bytes, name: str, path: Path, media_type: str | None = None) -> Artifact:
    """This content, which lies at ``path``, as an artifact. Raises InputError for a picture too large to decode."""
    try:
        header = images.check(data) if images.read_header(data) else None
    except InputError as problem:
        raise InputError(f"{shown(name)} cannot be kept: {problem}") from None
    kind = header.media_type if header else sniff(data)
    if kind in _VAGUE and media_type and _MEDIA_TYPE.fullmatch(media_type):
        kind = media_type
    label = safe_name(name)
    if header and images_suffix(label) != header.suffix:
        label += header.suffix
    width, height = (header.width, header.height) if header else (0, 0)
    return Artifact(_digest(data)[:_ID_DIGITS], label, kind, len(data), str(path), width, height)


def sniff(data: bytes) -> str:
    """The media type of what is no picture, by its first bytes; text is text/plain, whatever it is written in."""
    for magic, kind in _MAGIC:
        if data.startswith(magic):
            return kind
    head = data[: 1 << 16]
    if b"\0" in head:
        return _UNKNOWN
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if len(head) == len(data) or error.start < len(head) - 4:  # not just a letter that was cut in two
            return _UNKNOWN
    return "text/plain"


def safe_name(name: str) -> str:
    """A name that can be shown, stored on any system and means nothing but itself."""
    last = re.split(r"[/\\]", unicodedata.normalize("NFC", name))[-1]
    visible = "".join(letter for letter in last if letter == " " or unicodedata.category(letter)[0] not in "CZ")
    plain = _NOT_IN_NAMES.sub("_", visible).strip(". ")
    stem, dot, suffix = plain.rpartition(".")
    if not dot or len(suffix) > 10:
        stem, suffix = plain, ""
    stem = _cut(stem, MAX_NAME_CHARS) or "file"
    if re.fullmatch(r"(?i)con|prn|aux|nul|(com|lpt)[0-9¹²³]", stem.partition(".")[0]):
        stem = f"_{stem}"  # a device on Windows
    return f"{stem}.{suffix}" if suffix else stem


def images_suffix(name: str) -> str:
    """The ending of a name, as `images.Header` spells it."""
    suffix = Path(name).suffix.lower()
    return ".jpg" if suffix == ".jpeg" else suffix


def describe(artifact: Artifact) -> str:
    """The one line that a model reads of an artifact, such as ``[image 3f2a9c1b04de: a.png, PNG, 640x480]``."""
    if artifact.width:
        form = artifact.media_type.removeprefix("image/").upper()
        return f"[image {artifact.id}: {artifact.name}, {form}, {artifact.width}x{artifact.height}]"
    return f"[file {artifact.id}: {artifact.name}, {artifact.media_type}, {size_text(artifact.size)}]"


def _cut(text: str, limit: int) -> str:
    """At most so many characters, and so few bytes that every file system takes them."""
    text = text[:limit].encode()[: 2 * limit].decode(errors="ignore")
    return text.strip(". ")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
