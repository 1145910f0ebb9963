"""Tables of first steps that tool_choice.py wrote: Markdown, shares in per cent with Wilson 95 % intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bfcl import CATEGORIES, Case, load
from verdict import Verdict, verdict

from qwen_agent.confidence import curve, pick_threshold

FALSE_POSITIVE_RATES = (0.02, 0.05, 0.10, 0.20)
_USUAL = ("stored", "shallow")  # go without saying in the name of a run
Shares = dict[str, Callable[["First"], bool]]
CALLS: Shares = {  # of the outputs that hold a call
    "JSON": lambda first: first.verdict.parses,
    "listed name": lambda first: first.verdict.listed,
    "fits the schema": lambda first: first.verdict.fits,
    "JSON, repaired": lambda first: first.verdict.repaired_parses,
    "listed, repaired": lambda first: first.verdict.repaired_listed,
    "fits, repaired": lambda first: first.verdict.repaired_fits,
}
COMPARED: Shares = {
    "called": lambda first: first.verdict.called,
    "right tool": lambda first: first.verdict.right_tool,
    "right arguments": lambda first: first.verdict.right_arguments,
}


@dataclass(frozen=True, slots=True)
class First:
    """One first step. ``run`` names the model and how it was asked; ``call`` is the probability of calling."""

    run: str
    category: str
    id: str
    cut: bool
    call: float | None
    verdict: Verdict

    @property
    def should_call(self) -> bool:
        return "irrelevance" not in self.category


def report(files: Sequence[Path], data: Path | None, plot: Path | None) -> None:
    """Print every table. With ``data`` the texts are judged anew."""
    firsts = [first for path in files for first in _read(path, data)]
    runs = _grouped(firsts, lambda first: first.run)
    print(*_table_of_steps(runs), "", *_table_of_calls(runs), sep="\n")
    points = list(_table_of_thresholds(runs))
    if len(points) > 2:
        print("", *points, sep="\n")
    comparison = list(_table_of_differences(runs))
    if len(comparison) > 2:
        print("", *comparison, sep="\n")
    if plot is not None:
        _plot(runs, plot)


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """What a file holds so far; nothing if there is none."""
    if path.exists():
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def _read(path: Path, data: Path | None) -> Iterator[First]:
    cases: dict[tuple[str, bool], dict[str, Case]] = {}
    for row in rows(path):
        name, whole = row["category"], row["run"]["schemas"] == "whole"
        if data is not None and (name, whole) not in cases:
            cases[name, whole] = {case.id: case for case in load(data, name, 10**6, whole=whole)}
        judged = (
            Verdict(**row["verdict"])
            if data is None
            else verdict(cases[name, whole][row["id"]], row["text"], row["cut"])
        )
        call = 1.0 - row["weights"][0] if row["weights"] else None
        run = ", ".join(value for value in row["run"].values() if value not in _USUAL)
        yield First(run, name, row["id"], row["cut"], call, judged)


def _grouped(firsts: Iterable[First], key: Callable[[First], str]) -> dict[str, list[First]]:
    groups: dict[str, list[First]] = {}
    for first in firsts:
        groups.setdefault(key(first), []).append(first)
    return groups


def _by_set(firsts: Iterable[First]) -> Iterator[tuple[str, list[First]]]:
    groups = _grouped(firsts, lambda first: first.category)
    return ((name, groups[name]) for name in CATEGORIES if name in groups)


# ---- tables


def _header(*titles: str) -> list[str]:
    return [_line(*titles), _line(*["---"] * len(titles))]


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _table_of_steps(runs: dict[str, list[First]]) -> Iterator[str]:
    yield from _header("set", "run", "n", "calls", "right tool", "right arguments", "cut", "mean P(call)")
    for run, firsts in runs.items():
        for name, group in _by_set(firsts):
            right = [_share([test(first) for first in group]) for test in COMPARED.values()]
            calls = [first.call for first in group if first.call is not None]
            mean = f"{sum(calls) / len(calls):.3f}" if calls else "-"
            if not group[0].should_call:
                right[1:] = "-", "-"
            yield _line(name, run, len(group), *right, sum(first.cut for first in group), mean)


def _table_of_calls(runs: dict[str, list[First]]) -> Iterator[str]:
    yield from _header("set", "run", "calls", *CALLS)
    for run, firsts in runs.items():
        for name, group in _by_set(firsts):
            called = [first for first in group if first.verdict.called]
            counts = [sum(map(test, called)) for test in CALLS.values()]
            yield _line(name, run, len(called), *(_part(count, len(called)) for count in counts))


def _table_of_thresholds(runs: dict[str, list[First]]) -> Iterator[str]:
    yield from _header("sets", "run", "false positives at most", "threshold", "false positives", "recall")
    for run, name, probabilities, should_call, group in _scales(runs):
        for rate in FALSE_POSITIVE_RATES:
            point = pick_threshold(probabilities, should_call, rate)
            shares = (f"{100 * share:.1f}" for share in (point.false_positive_rate, point.recall))
            yield _line(name, run, f"{100 * rate:.0f} %", f"{point.value:.4f}", *shares)
        written = [_share([f.verdict.called for f in group if f.should_call is kind]) for kind in (False, True)]
        yield _line(name, run, "as written", "-", *written)


def _scales(runs: dict[str, list[First]]) -> Iterator[tuple[str, str, list[float], list[bool], list[First]]]:
    """Run, name of the sets, probabilities of calling and right decisions, wherever there are cases of both kinds."""
    for run, firsts in runs.items():
        known = [first for first in firsts if first.call is not None]
        live = [first for first in known if first.category.startswith("live")]
        rest = [first for first in known if not first.category.startswith("live")]
        for name, group in {"not live": rest, "live": live}.items():
            should_call = [first.should_call for first in group]
            if any(should_call) and not all(should_call):
                yield run, name, [first.call for first in group if first.call is not None], should_call, group


def _table_of_differences(runs: dict[str, list[First]]) -> Iterator[str]:
    """The first run against each other one, on the questions of both."""
    yield from _header("set", "first run", "other run", "measure", "only first", "only other", "p (sign test)")
    (first_run, firsts), *others = runs.items()
    for run, group in others:
        theirs = {(first.category, first.id): first for first in group}
        for name, ours in _by_set(firsts):
            pairs = [(first, theirs[name, first.id]) for first in ours if (name, first.id) in theirs]
            for label, test in COMPARED.items():
                outcomes = [(test(a), test(b)) for a, b in pairs]
                a, b = outcomes.count((True, False)), outcomes.count((False, True))
                if pairs and (label == "called" or pairs[0][0].should_call):
                    yield _line(name, first_run, run, label, a, b, f"{sign_test(a, b):.2f}")


def _share(hits: Sequence[bool]) -> str:
    low, high = wilson(sum(hits), len(hits))
    return f"{100 * sum(hits) / len(hits):.1f} [{low:.1f}, {high:.1f}]"


def _part(count: int, n: int) -> str:
    return f"{100 * count / n:.1f} ({count})" if n else "-"


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, in per cent."""
    share, spread = hits / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


def sign_test(a: int, b: int) -> float:
    """Two-sided exact probability of discordant counts at least this uneven if neither model were better."""
    tail = sum(math.comb(a + b, k) for k in range(min(a, b) + 1))
    return min(1.0, 2.0 * tail / 2 ** (a + b))


# ---- the picture


def _plot(runs: dict[str, list[First]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for run, name, probabilities, should_call, group in _scales(runs):
        points = curve(probabilities, should_call)
        xs, ys = [100 * p.false_positive_rate for p in points], [100 * p.recall for p in points]
        (line,) = axes.step(xs, ys, where="post", label=f"{name} ({run})")
        written = [[first.verdict.called for first in group if first.should_call is kind] for kind in (False, True)]
        x, y = (100 * sum(hits) / len(hits) for hits in written)
        axes.plot(x, y, "o", color=line.get_color())
    axes.set(xlabel="called without a right call, %", ylabel="called where a call is right, %", xlim=(0, 50))
    axes.grid(alpha=0.3)
    axes.legend(title="● as written", fontsize="small")
    figure.savefig(path, dpi=150)
