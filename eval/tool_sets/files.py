"""Rows of data files: found by their name without the ending, plain or gzipped, JSON Lines or one JSON list."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz")


def find(folder: Path, stem: str) -> Path:
    """The file of this name in the folder. Raises SystemExit if there is none."""
    for ending in ENDINGS:
        if (path := folder / f"{stem}{ending}").is_file():
            return path
    raise SystemExit(f"there is no {stem}{{{','.join(ENDINGS)}}} in {folder}: give --data the folder that holds it")


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects in a file. Raises SystemExit, naming the line, for what is none."""
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    if text.lstrip().startswith("["):
        yield from _objects(path, [(1, text)], many=True)
    else:
        yield from _objects(path, [pair for pair in enumerate(text.split("\n"), 1) if pair[1].strip()], many=False)


def _objects(path: Path, texts: list[tuple[int, str]], *, many: bool) -> Iterator[dict[str, Any]]:
    for number, text in texts:
        try:
            value = json.loads(text)
        except ValueError as error:
            raise SystemExit(f"{path}, line {number}: no JSON ({error})") from None
        for row in value if many else [value]:
            if not isinstance(row, dict):
                raise SystemExit(f"{path}, line {number}: {str(row)[:80]!r} is no JSON object")
            yield row
