"""WMT22 English to Chinese from two plain files, five shots, BLEU of sacrebleu with its ``zh`` tokenisation.

The original's script and prompt were never published, so the prompt is ours. The five examples are the first segments
of the file, which are then not scored, unless ``shots`` names a file of others (a line each: English, a tab, Chinese).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import datasets

from academic_sets.files import Part, Row, dataset
from qwen_agent.errors import InputError, MissingDependency

SHOTS = 5
RESAMPLES = 1000
Pair = tuple[str, str]


def english_to_chinese(
    source: str, reference: str, limit: int | None = None, shard: str = "1/1", shots: str | None = None, **_: object
) -> dict[str, datasets.Dataset]:
    """``source`` and ``reference``: files of as many lines, such as generaltest2022.en-zh.src.en and .ref.refA.zh."""
    pairs = read_pairs(Path(source), Path(reference))
    examples = pairs[:SHOTS] if shots is None else read_shots(Path(shots))
    opening = "".join(f"{_asked(english)} {chinese}\n\n" for english, chinese in examples)
    rows = [
        {"id": str(number), "prompt": opening + _asked(english), "answer": chinese}
        for number, (english, chinese) in enumerate(pairs)
    ]
    return dataset(Part.of(limit, shard).take(rows[SHOTS if shots is None else 0 :]))


def _asked(english: str) -> str:
    return f"Translate English to Chinese.\nEnglish: {english}\nChinese:"


def read_pairs(source: Path, reference: Path) -> list[Pair]:
    english, chinese = _lines(source), _lines(reference)
    if len(english) != len(chinese):
        raise InputError(f"{source} has {len(english)} lines but {reference} has {len(chinese)}: they must be parallel")
    return list(zip(english, chinese, strict=True))


def read_shots(path: Path) -> list[Pair]:
    pairs = [line.split("\t") for line in _lines(path) if line]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise InputError(f"{path} does not hold examples: each line must be English, a tab, Chinese")
    return [(english, chinese) for english, chinese in pairs]


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise InputError(f"there is no file {path}: see eval/EVALUATION.md for where WMT22 is from")
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


# ---- scores


def score(doc: Row, results: Sequence[str]) -> dict[str, Pair]:
    """The translation beside its reference."""
    return {"bleu": (results[0].strip(), doc["answer"])}


def bleu(translated: Sequence[Pair]) -> float:
    """Corpus BLEU, 0 to 100, of (translation, reference) pairs."""
    return bleu_interval(translated)[0]


def bleu_interval(translated: Sequence[Pair], resamples: int = 0) -> tuple[float, float]:
    """Corpus BLEU and half the width of its 95 % interval over ``resamples`` resampled corpora (0 without them)."""
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError:
        raise MissingDependency("sacrebleu", "eval") from None
    hypotheses, references = zip(*translated, strict=True)
    found = BLEU(tokenize="zh").corpus_score(list(hypotheses), [list(references)], n_bootstrap=resamples or 1)
    return float(found.score), float(getattr(found, "_ci", 0.0)) if resamples else 0.0
