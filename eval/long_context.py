"""Perplexity over long texts: of 1k to 16k tokens, with and without dynamic NTK and LogN where a model has them.

    python eval/long_context.py embedded paper.txt book.tex --out ppl.jsonl --lengths 1024 2048 4096 8192
    python eval/long_context.py Qwen/Qwen-7B arxiv/*.txt --out ppl.jsonl --plot ppl.png --markdown ppl.md

The texts are encoded, joined and cut into samples of one length; perplexity is exp of the mean negative log-likelihood
of all tokens but the first of each sample. Every length is measured on the same tokens: as many as fill whole samples
of the longest one, at most --tokens. Every sample is read at once, beyond the window that the model was made for too,
which is what the original's table shows; dynamic NTK follows from a sample's length. Brackets are 95 %, from how the
samples differ. A run that was killed goes on where it ended.

The original's table has a row more, window attention, of which no code was ever released, and its texts and script are
not public either (a maintainer described the recipe in QwenLM/Qwen issue 206).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from token_logprobs import token_logprobs

from qwen_agent.errors import InputError, MissingDependency, QwenAgentError
from qwen_agent.llm.config import read_model_config
from qwen_agent.llm.hub import resolve_model
from qwen_agent.llm.local import load_runtime
from qwen_agent.llm.tokenizer import load_tokenizer

LENGTHS = (1024, 2048, 4096, 8192, 16384)
PUBLISHED = {
    "Qwen-7B of 2023-08": (4.23, 3.78, 39.35, 469.81, 2645.09),
    "+ dynamic NTK": (4.23, 3.78, 3.59, 3.66, 5.71),
    "+ dynamic NTK + LogN": (4.23, 3.78, 3.58, 3.56, 4.62),
    "+ dynamic NTK + LogN + window attention": (4.23, 3.78, 3.58, 3.49, 4.32),
}
Z = 1.96


@dataclass(frozen=True, slots=True)
class Sample:
    """What reading a sample gave: the negative log-likelihood of ``tokens`` tokens."""

    variant: str
    length: int
    number: int
    nll: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Over ``samples`` samples; without an interval (nan) if there is one only."""

    variant: str
    length: int
    value: float
    low: float
    high: float
    samples: int

    def __str__(self) -> str:
        interval = "" if math.isnan(self.low) else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.value:.2f}{interval}"


def main() -> None:
    args = _arguments()
    try:
        _run(args)
    except QwenAgentError as error:
        sys.exit(f"error: {error}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="embedded, a folder or a hub id")
    parser.add_argument("texts", type=Path, nargs="+", help="files of UTF-8 text")
    parser.add_argument("--out", type=Path, required=True, help="the log of the samples (JSON Lines): resumed if there")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="tokens of a sample")
    parser.add_argument("--tokens", type=int, default=2**18, help="tokens to read for each length (default: 262144)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="default: what is fast on the device"
    )
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    parser.add_argument("--plot", type=Path, help="draw the curves here (PNG, SVG)")
    return parser.parse_args()


def _run(args: argparse.Namespace) -> None:
    lengths = sorted(set(args.lengths))
    if lengths[0] < 2:
        raise InputError(f"a length of {lengths[0]} cannot be used: a sample needs two tokens")
    folder = resolve_model(args.model)
    ids = cut(_encoded(folder, args.texts), lengths[-1], args.tokens)
    about = {
        "model": args.model,
        "dtype": args.dtype or "default",
        "config": _digest((folder / "config.json").read_bytes()),
        "text": _digest(str(ids).encode()),
    }
    samples = list(measure(folder, ids, lengths, args.out, about, args.device, args.dtype))
    found = perplexities(samples)
    page = markdown(found, lengths, args.model, len(ids))
    print(page, end="")
    if args.markdown is not None:
        args.markdown.write_text(page, encoding="utf-8")
    if args.json is not None:
        report = about | {"tokens": len(ids), "published": PUBLISHED, "perplexities": [asdict(one) for one in found]}
        args.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    if args.plot is not None:
        _plot(found, args.plot, args.model)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


# ---- samples


def _encoded(folder: Path, texts: Sequence[Path]) -> list[int]:
    tokenizer = load_tokenizer(folder)
    ids: list[int] = []
    for path in texts:
        try:
            ids += tokenizer.encode(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read as UTF-8 text: {error}") from None
    return ids


def cut(ids: Sequence[int], longest: int, most: int) -> list[int]:
    """The first tokens of a text that fill whole samples of the longest length, at most ``most``."""
    samples = min(len(ids), most) // longest
    if not samples:
        raise InputError(
            f"the texts have {len(ids)} tokens, of which --tokens allows {most}: not one sample of {longest}; "
            "give more text or shorter --lengths"
        )
    return list(ids[: samples * longest])


def measure(
    folder: Path,
    ids: Sequence[int],
    lengths: Sequence[int],
    log: Path,
    about: Mapping[str, str],
    device: str | None,
    dtype: str | None,
) -> Iterator[Sample]:
    """Every sample of every length under every variant of the model: from the log, or read now and added to it."""
    known = {(sample.variant, sample.length, sample.number): sample for sample in _read(log, about)}
    for variant, changes in variants(folder).items():
        todo = [(length, number) for length in lengths for number in range(len(ids) // length)]
        missing = [(length, number) for length, number in todo if (variant, length, number) not in known]
        for sample in _asked(folder, variant, changes, ids, missing, device, dtype):
            known[variant, sample.length, sample.number] = sample
            _append(log, about, sample)
        yield from (known[variant, length, number] for length, number in todo)


def variants(folder: Path) -> dict[str, dict[str, bool]]:
    """What can be switched on in a model, one after the other as in the original's table, as changes of its config."""
    config = read_model_config(folder)
    if not (config.dynamic_ntk or config.logn):
        return {"as it is": {}}
    steps = {"plain": (False, False), "+ dynamic NTK": (True, False), "+ dynamic NTK + LogN": (True, True)}
    return {name: {"use_dynamic_ntk": ntk, "use_logn_attn": logn} for name, (ntk, logn) in steps.items()}


def _asked(
    folder: Path,
    variant: str,
    changes: Mapping[str, bool],
    ids: Sequence[int],
    todo: Sequence[tuple[int, int]],
    device: str | None,
    dtype: str | None,
) -> Iterator[Sample]:
    if not todo:
        return
    from tqdm import tqdm

    with tempfile.TemporaryDirectory() as scratch:
        _changed(folder, Path(scratch), changes, max(length for length, _ in todo))
        runtime = load_runtime(Path(scratch), device=device, dtype=dtype, kept_caches=0)
        with tqdm(total=sum(length for length, _ in todo), unit=" tokens", desc=variant) as bar:
            for length, number in todo:
                logs = list(token_logprobs(runtime, ids[number * length : (number + 1) * length]))
                yield Sample(variant, length, number, -math.fsum(logs), len(logs))
                bar.update(length)


def _changed(folder: Path, copy: Path, changes: Mapping[str, bool], longest: int) -> None:
    """The checkpoint with another config beside links to its weights, and a window for the longest sample."""
    for path in folder.iterdir():
        if path.name != "config.json":
            (copy / path.name).symlink_to(path.resolve())
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    window = max(read_model_config(folder).window, longest + 1)
    (copy / "config.json").write_text(json.dumps(raw | dict(changes) | {"max_position_embeddings": window}))


# ---- the log


def _read(log: Path, about: Mapping[str, str]) -> Iterator[Sample]:
    """The samples of earlier runs. A torn last line is dropped; a log of another run is refused."""
    if not log.exists():
        return
    lines = log.read_text(encoding="utf-8").split("\n")
    if lines[-1]:  # the writer was killed within this line
        log.write_text("".join(f"{line}\n" for line in lines[:-1]), encoding="utf-8")
    for line in lines[:-1]:
        row = json.loads(line)
        if row.pop("about") != about:
            raise InputError(f"{log} is the log of another model or other texts: give another --out")
        yield Sample(**row)


def _append(log: Path, about: Mapping[str, str], sample: Sample) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"about": about, **asdict(sample)}) + "\n")


# ---- figures


def perplexities(samples: Sequence[Sample]) -> list[Perplexity]:
    """One for each variant and length, in the order of the samples."""
    groups: dict[tuple[str, int], list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.variant, sample.length].append(sample)
    return [_perplexity(variant, length, group) for (variant, length), group in groups.items()]


def _perplexity(variant: str, length: int, group: Sequence[Sample]) -> Perplexity:
    means = [sample.nll / sample.tokens for sample in group]
    mean = sum(means) / len(means)  # all samples of a length have as many tokens
    error = math.nan
    if len(means) > 1:
        error = math.sqrt(sum((x - mean) ** 2 for x in means) / (len(means) - 1) / len(means))
    low, high = math.exp(mean - Z * error), math.exp(mean + Z * error)
    return Perplexity(variant, length, math.exp(mean), low, high, len(means))


def markdown(found: Sequence[Perplexity], lengths: Sequence[int], model: str, tokens: int) -> str:
    of = {(one.variant, one.length): one for one in found}
    names = list(dict.fromkeys(one.variant for one in found))
    lines = [
        f"Perplexity of {model} over the same {tokens:,} tokens:",
        "",
        f"| | {' | '.join(map(str, lengths))} |",
        "|---" * (len(lengths) + 1) + "|",
        *(f"| {name} | {' | '.join(str(of[name, length]) for length in lengths)} |" for name in names),
        "",
        "Published for other texts (arXiv):",
        "",
        f"| | {' | '.join(map(str, LENGTHS))} |",
        "|---" * (len(LENGTHS) + 1) + "|",
        *(f"| {name} | {' | '.join(f'{value:.2f}' for value in values)} |" for name, values in PUBLISHED.items()),
    ]
    return "\n".join(lines) + "\n"


def _plot(found: Sequence[Perplexity], path: Path, model: str) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependency("matplotlib", "eval") from None
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for variant in dict.fromkeys(one.variant for one in found):
        line = [one for one in found if one.variant == variant]
        axes.plot([one.length for one in line], [one.value for one in line], marker="o", label=variant)
        if not any(math.isnan(one.low) for one in line):
            axes.fill_between([p.length for p in line], [p.low for p in line], [p.high for p in line], alpha=0.2)
    ticks = sorted({one.length for one in found})
    axes.set(xscale="log", yscale="log", xlabel="tokens of a sample", ylabel="perplexity", title=model)
    axes.set_xticks(ticks, labels=[f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
