"""Rows of the public sets from local files, and the part of them that a run takes.

A split is one file of JSON Lines with a ``subject`` in every row, or the folder of CSV files, one a subject, that the
set was published as. Files may be gzipped. Rows of multiple choice come out as subject, question, A, B, C, D, answer.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO, Any

import datasets

from qwen_agent.errors import InputError

Row = dict[str, Any]
LETTERS = ("A", "B", "C", "D")
MOST_ROWS = 10**9


@dataclass(frozen=True, slots=True)
class Part:
    """The first ``limit`` rows of each subject, and of these every ``count``-th, beginning with ``index`` (from 1)."""

    limit: int = MOST_ROWS
    index: int = 1
    count: int = 1

    @classmethod
    def of(cls, limit: int | None, shard: str) -> Part:
        """From the options of a run. Raises InputError if one cannot be read."""
        index, _, count = shard.partition("/")
        if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise InputError(f"shard {shard!r} cannot be used: write it as 2/8, the second of eight")
        if limit is not None and limit < 1:
            raise InputError(f"limit {limit} cannot be used: it must be at least 1")
        return cls(MOST_ROWS if limit is None else limit, int(index), int(count))

    def take(self, rows: Sequence[Row]) -> list[Row]:
        """These rows, in their order. Rows of one subject must stand together."""
        kept = [row for _, group in groupby(rows, key=_subject) for row in list(group)[: self.limit]]
        return kept[self.index - 1 :: self.count]


def _subject(row: Row) -> str:
    return str(row.get("subject", ""))


def dataset(rows: Sequence[Row], split: str = "test") -> dict[str, datasets.Dataset]:
    """Rows as the harness wants them. Raises InputError if there are none."""
    if not rows:
        raise InputError("there is no row to ask: the shard is empty, so use fewer shards or a higher limit")
    return {split: datasets.Dataset.from_list(list(rows))}


def read_lines(folder: Path, name: str) -> list[Row]:
    """``name``.jsonl or ``name``.jsonl.gz of a folder. Raises InputError if it is missing or not JSON Lines."""
    path = _first(folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz")
    if path is None:
        raise InputError(
            f"{folder} has no {name}.jsonl nor {name}.jsonl.gz: see eval/EVALUATION.md for where it is from"
        )
    rows = []
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise InputError(f"{path} line {number} is not JSON ({error}): download it again") from None
    return rows


def read_exam(folder: Path, split: str, *, header: bool) -> list[Row]:
    """The questions of a split, sorted by subject; ``header`` says whether its CSV files name their columns."""
    if _first(folder / f"{split}.jsonl", folder / f"{split}.jsonl.gz") is not None:
        rows = [_plain(row) for row in read_lines(folder, split)]
    elif (folder / split).is_dir():
        rows = [row for path in sorted((folder / split).glob("*.csv*")) for row in _read_csv(path, split, header)]
    else:
        raise InputError(
            f"{folder} has neither {split}.jsonl(.gz) nor a folder {split} of CSV files: see eval/EVALUATION.md"
        )
    return sorted(rows, key=_subject)


def _read_csv(path: Path, split: str, header: bool) -> Iterator[Row]:
    subject = path.name.removesuffix(".gz").removesuffix(".csv").removesuffix(f"_{split}")
    with _open(path) as file:
        lines = csv.reader(file)
        names = next(lines) if header else ["question", *LETTERS, "answer"]
        for cells in lines:
            yield _plain({"subject": subject, **dict(zip(names, cells, strict=False))})


def _plain(row: Row) -> Row:
    """One spelling of the columns, whichever the publisher chose."""
    named = {key.lower(): value for key, value in row.items()}
    choices = named.get("choices") or [named.get(letter.lower()) for letter in LETTERS]
    values = (named.get("subject"), named.get("question"), *choices, named.get("answer"))
    if len(values) != 7 or any(value is None for value in values) or named["answer"] not in LETTERS:
        raise InputError(f"not a question with subject, question, A to D and an answer of A to D: {str(row)[:200]}")
    return dict(zip(("subject", "question", *LETTERS, "answer"), map(str, values), strict=True))


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every data file in a folder, by its path within."""
    suffixes = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".txt")
    files = (path for path in sorted(folder.rglob("*")) if path.name.endswith(suffixes) and path.is_file())
    return {str(path.relative_to(folder)): digest(path) for path in files}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _first(*paths: Path) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")
