"""Public sets of questions for tool use, each read by a file of its own into cases of one kind."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from cases import Case

from . import acebench, bfcl, metatool, qwen, sealtools, toolalpaca
from .files import find


class ToolSet(Protocol):
    """What the file of a set has."""

    def categories(self, folder: Path) -> Sequence[str]:
        """The parts that the set has, or may have."""
        ...

    def files(self, folder: Path, category: str) -> Sequence[str]:
        """The names, without endings, of the files that a category is read from."""
        ...

    def load(self, folder: Path, category: str) -> Iterator[Case]:
        """The cases of a category, in the order of the file. Raises SystemExit for files that cannot be read."""
        ...


SETS: Mapping[str, ToolSet] = {
    "bfcl": bfcl,
    "acebench": acebench,
    "toolalpaca": toolalpaca,
    "sealtools": sealtools,
    "metatool": metatool,
    "qwen": qwen,
}
NAMES = {
    "bfcl": "Berkeley Function Calling Leaderboard v4",
    "acebench": "ACEBench, English",
    "toolalpaca": "ToolAlpaca, one step",
    "sealtools": "Seal-Tools, one call",
    "metatool": "MetaTool",
    "qwen": "the original's files",
}


def digests(name: str, folder: Path, categories: Sequence[str]) -> dict[str, str]:
    """The SHA-256 of every file that the categories are read from, by file name."""
    chosen = SETS[name]
    paths = [find(folder, stem) for category in categories for stem in chosen.files(folder, category)]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
