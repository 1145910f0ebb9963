"""What first steps were worth, as JSON and as tables: shares with Wilson's 95 % intervals, and floors beside."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from answers import About, Answer
from cases import Case
from imagined import CEILING, FLOORS, Imagined, right_text
from rules import RULES, Tokenize
from shares import Share
from verdict import MISTAKES, RIGHT, Verdict, verdict

from qwen_agent.confidence import curve, pick_threshold

VERSION = 1  # of the questions as they are put and of what is made of the answers
FALSE_POSITIVE_RATES = (0.02, 0.05, 0.10, 0.20)
_USUAL = ("stored", "shallow")  # go without saying in the name of a run

Test = Callable[[Verdict], bool]
WHERE_RIGHT: Mapping[str, Test] = {  # a call is right
    "calls": lambda v: v.called,
    "right tool": lambda v: v.right_tool,
    "right arguments": lambda v: v.right_arguments,
    "exact arguments": lambda v: v.exact_arguments,
}
WHERE_NONE: Mapping[str, Test] = {  # no call is right
    "any Action line": lambda v: v.attempt,
    "call of a listed tool": lambda v: v.valid_call,
    "an agent calls": lambda v: v.called,
}
OF_CALLS: Mapping[str, Test] = {  # of the outputs that hold a call
    "JSON": lambda v: v.parses,
    "listed name": lambda v: v.listed,
    "fits the schema": lambda v: v.fits,
    "JSON, repaired": lambda v: v.repaired_parses,
    "listed, repaired": lambda v: v.repaired_listed,
    "fits, repaired": lambda v: v.repaired_fits,
}
COMPARED = ("calls", "right tool", "right arguments")
PUBLISHED = """\
Published (README of Qwen, September 2023; rules qwen-2023-08, data not public, so that none of these sets is it):

| model | Tool Selection | Tool Input | False Positive Error |
| --- | --- | --- | --- |
| GPT-4 | 95 % | 0.90 | 15 % |
| GPT-3.5 | 85 % | 0.88 | 75 % |
| Qwen-7B-Chat | 99 % | 0.89 | 9.7 % |

What differs here: {set} stands for the original's questions; {tokens}; the output ends at the first observation or
final answer, which the original lets run on; the prompt is ours (the original's data hold their own)."""


@dataclass(frozen=True, slots=True)
class First:
    """A first step. ``answer`` is None where none was asked for, ``verdict`` also where there is an error instead."""

    case: Case
    answer: Answer | None
    verdict: Verdict | None

    @property
    def call(self) -> float | None:
        """The probability of calling, where the runtime knows it."""
        return 1.0 - self.answer.weights[0] if self.answer is not None and self.answer.weights else None

    @property
    def likeliest_is_right(self) -> bool:
        """Whether, of the tools, the one with the highest probability is the right one."""
        if self.answer is None or self.case.gold is None or len(self.answer.weights) < 2:
            return False
        _, *tools = self.answer.weights
        return self.case.functions[tools.index(max(tools))].name == self.case.gold.name


@dataclass(frozen=True, slots=True)
class Run:
    """All questions of a run with what is known of their answers."""

    about: About
    firsts: tuple[First, ...]

    @property
    def name(self) -> str:
        named = (self.about[key] for key in ("model", "weights", "grammar", "schemas"))
        return ", ".join(str(value) for value in named if value not in _USUAL)

    @property
    def asked(self) -> int:
        return sum(first.answer is not None for first in self.firsts)

    @property
    def errors(self) -> list[Answer]:
        return [first.answer for first in self.firsts if first.answer is not None and first.answer.error]

    @property
    def judged(self) -> list[First]:
        return [first for first in self.firsts if first.verdict is not None]


def judged(about: About, cases: Sequence[Case], answers: Mapping[str, Answer]) -> Run:
    """``answers`` by the ids of the questions, "category/id"."""
    return Run(about, tuple(_first(case, answers.get(f"{case.category}/{case.id}")) for case in cases))


def _first(case: Case, answer: Answer | None) -> First:
    if answer is None or answer.error:
        return First(case, answer, None)
    return First(case, answer, verdict(case, answer.text, answer.cut))


def _by_category(firsts: Iterable[First]) -> dict[str, list[First]]:
    groups: dict[str, list[First]] = {}
    for first in firsts:
        groups.setdefault(first.case.category, []).append(first)
    return groups


# ---- JSON -----------------------------------------------------------------------------------------------------------


def as_json(run: Run, tokenize: Tokenize, tokens: str) -> dict[str, Any]:
    """The whole report of a run as JSON values. Shares are from 0 to 1, seconds those of all answers together."""
    about = run.about
    answers = [first.answer for first in run.judged if first.answer is not None]
    return {
        "set": about["set"],
        "version": VERSION,
        "data": about["sha256"],
        "model": about["model"],
        "settings": {key: about[key] for key in about if key not in ("set", "sha256", "data", "model")},
        "rules": list(RULES),
        "tokenizer": tokens,
        "counts": {
            "n": len(run.firsts),
            "asked": run.asked,
            "errors": len(run.errors),
            "cut": sum(answer.cut for answer in answers),
            "parse_failures": sum(v.called and not v.parses for v in _verdicts(run.judged)),
        },
        "complete": run.asked == len(run.firsts),
        "tokens": sum(answer.tokens for answer in answers),
        "seconds": round(sum(answer.seconds for answer in answers), 1),
        "categories": {name: _category(group, tokenize) for name, group in _by_category(run.judged).items()},
    }


def _category(firsts: Sequence[First], tokenize: Tokenize) -> dict[str, Any]:
    cases = [first.case for first in firsts]
    texts = [first.answer.text for first in firsts if first.answer is not None]
    verdicts = _verdicts(firsts)
    return {
        "n": len(firsts),
        "metrics": _metrics(verdicts, cases, texts, tokenize),
        "outcomes": dict(Counter(v.outcome for v in verdicts)),
        "floors": {name: _imagined(agent, cases, tokenize) for name, agent in FLOORS.items()},
        "ceiling": {name: _imagined(agent, cases, tokenize) for name, agent in CEILING.items()},
    }


def _imagined(agent: Imagined, cases: Sequence[Case], tokenize: Tokenize) -> dict[str, Any]:
    texts = [agent(case) for case in cases]
    metrics = _metrics(
        [verdict(case, text, False) for case, text in zip(cases, texts, strict=True)], cases, texts, tokenize
    )
    return {name: metric["value"] for name, metric in metrics.items()}


def _metrics(
    verdicts: Sequence[Verdict], cases: Sequence[Case], texts: Sequence[str], tokenize: Tokenize
) -> dict[str, Any]:
    """Of one category, in which a call is right everywhere or nowhere, but in files that mix both."""
    right = [v for v, case in zip(verdicts, cases, strict=True) if case.gold is not None]
    none = [v for v, case in zip(verdicts, cases, strict=True) if case.gold is None]
    called = [v for v in verdicts if v.called]
    found = {name: Share(sum(map(test, right)), len(right)).as_json() for name, test in WHERE_RIGHT.items() if right}
    found |= {name: Share(sum(map(test, none)), len(none)).as_json() for name, test in WHERE_NONE.items() if none}
    found |= {
        f"of calls: {name}": Share(sum(map(test, called)), len(called)).as_json() for name, test in OF_CALLS.items()
    }
    return found | _by_rules(cases, texts, tokenize)


def _by_rules(cases: Sequence[Case], texts: Sequence[str], tokenize: Tokenize) -> dict[str, Any]:
    found: dict[str, Any] = {}
    positive = [(text, right_text(case)) for case, text in zip(cases, texts, strict=True) if case.gold is not None]
    known = [case.response or case.gold.example is not None for case in cases if case.gold is not None]
    negative = [text for case, text in zip(cases, texts, strict=True) if case.gold is None]
    for name, rules in RULES.items():
        if positive:
            found[f"{name}: tool selection"] = Share(
                sum(rules.selects(*pair) for pair in positive), len(positive)
            ).as_json()
        if positive and all(known):
            rouges = [rules.input_rouge(*pair, tokenize) for pair in positive]
            found[f"{name}: tool input"] = _mean(rouges)
        if negative:
            found[f"{name}: false positives"] = Share(sum(map(rules.calls, negative)), len(negative)).as_json()
    return found


def _mean(values: Sequence[float]) -> dict[str, Any]:
    """A mean with the normal 95 % interval of means."""
    mean = statistics.fmean(values)
    half = 1.96 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 1.0
    return {"n": len(values), "value": mean, "low": max(0.0, mean - half), "high": min(1.0, mean + half)}


def _verdicts(firsts: Iterable[First]) -> list[Verdict]:
    return [first.verdict for first in firsts if first.verdict is not None]


# ---- tables ---------------------------------------------------------------------------------------------------------


def as_markdown(runs: Sequence[Run], reports: Sequence[Mapping[str, Any]], set_name: str) -> str:
    """All tables of the runs, and of the first against each other one; ``reports`` are their `as_json`."""
    named = list(zip(runs, reports, strict=True))
    tokens = f"tokens of ROUGE: {reports[0]['tokenizer']}"
    return "\n".join(
        [
            *(_heading(run, report, set_name) for run, report in named),
            "",
            *_section("A call is right", WHERE_RIGHT, named),
            *_section("No call is right", WHERE_NONE, named),
            *_by_rules_table(named),
            PUBLISHED.format(set=set_name, tokens=tokens),
            "",
            *_section("Of the calls", [f"of calls: {name}" for name in OF_CALLS], named, imagined=False),
            *_mistakes(named),
            *_thresholds(runs),
            *_differences(runs),
        ]
    ).rstrip()


def _heading(run: Run, report: Mapping[str, Any], set_name: str) -> str:
    counts = report["counts"]
    text = f"**{run.name}** on {set_name}: {counts['asked']} of {counts['n']} questions asked"
    if run.asked < len(run.firsts):
        text = f"**INCOMPLETE: {counts['asked']} of {counts['n']} asked.** {text}"
    extra = (
        f"{counts['errors']} errors (not scored), {counts['cut']} cut off, {counts['parse_failures']} inputs unreadable"
    )
    return f"{text}, {extra}; {report['tokens']} tokens, {report['seconds']:.0f} s of answers\n"


def _section(
    title: str, metrics: Iterable[str], named: Sequence[tuple[Run, Mapping[str, Any]]], *, imagined: bool = True
) -> list[str]:
    names = list(metrics)
    rows = []
    for run, report in named:
        for category, found in report["categories"].items():
            if names[0] not in found["metrics"]:
                continue
            cells = [_share(found["metrics"][name]) for name in names]
            rows.append(_line(category, run.name, found["metrics"][names[0]]["n"], *cells))
            beside = {**found["floors"], **found["ceiling"]} if imagined and (run, report) == named[-1] else {}
            rows += [
                _line("", f"*{who}*", "", *(_per_cent(got[name]) for name in names)) for who, got in beside.items()
            ]
    header = _header("category", "run", "n", *(name.removeprefix("of calls: ") for name in names))
    return [f"{title}, %", "", *header, *rows, ""] if rows else []


def _by_rules_table(named: Sequence[tuple[Run, Mapping[str, Any]]]) -> list[str]:
    rows = []
    for run, report in named:
        for category, found in report["categories"].items():
            for rules in RULES:
                got = [
                    found["metrics"].get(f"{rules}: {name}")
                    for name in ("tool selection", "tool input", "false positives")
                ]
                cells = [_share(got[0]), _rouge(got[1]), _share(got[2])]
                rows.append(_line(category, run.name, rules, *cells))
    header = _header("category", "run", "rules", "Tool Selection, %", "Tool Input, Rouge-L", "False Positive Error, %")
    return ["By the original's rules", "", *header, *rows, ""]


def _mistakes(named: Sequence[tuple[Run, Mapping[str, Any]]]) -> list[str]:
    outcomes = [RIGHT, *MISTAKES, "needless call"]
    rows = [
        _line(category, run.name, *(found["outcomes"].get(outcome, 0) for outcome in outcomes))
        for run, report in named
        for category, found in report["categories"].items()
    ]
    return ["What was wrong (the first thing that was)", "", *_header("category", "run", *outcomes), *rows, ""]


def _thresholds(runs: Sequence[Run]) -> list[str]:
    rows = []
    for run, name, probabilities, should_call, group in _scales(runs):
        for rate in FALSE_POSITIVE_RATES:
            point = pick_threshold(probabilities, should_call, rate)
            found = (point.false_positive_rate, point.recall, _selection(group, point.value))
            shares = (f"{100 * share:.1f}" for share in found)
            rows.append(_line(name, run, f"{100 * rate:.0f} %", f"{point.value:.4f}", *shares))
        rows.append(_line(name, run, "as written", "-", *(_share(share.as_json()) for share in _written(group))))
    header = _header("sets", "run", "false positives at most", "threshold", "false positives", "recall", "right tool")
    return ["Thresholds on the probability of calling", "", *header, *rows, ""] if rows else []


def _selection(group: Sequence[First], threshold: float) -> float:
    """The share of the right tools that are chosen if the likeliest is called from this probability of calling on."""
    positive = [first for first in group if first.case.gold is not None]
    chosen = [first.likeliest_is_right for first in positive if first.call is not None and first.call >= threshold]
    return sum(chosen) / len(positive)


def _written(group: Sequence[First]) -> tuple[Share, Share, Share]:
    """How often is called where no call is right; where one is, how often is called, and how often the right tool."""
    none = _verdicts(first for first in group if first.case.gold is None)
    right = _verdicts(first for first in group if first.case.gold is not None)
    needless = Share(sum(v.called for v in none), len(none))
    called, chosen = (Share(sum(map(WHERE_RIGHT[name], right)), len(right)) for name in ("calls", "right tool"))
    return needless, called, chosen


def _scales(runs: Sequence[Run]) -> Iterator[tuple[str, str, list[float], list[bool], list[First]]]:
    """Run, name of the sets, probabilities of calling and right decisions, wherever there are cases of both kinds."""
    for run in runs:
        known = [first for first in run.judged if first.call is not None]
        live = [first for first in known if first.case.category.startswith("live_")]
        rest = [first for first in known if not first.case.category.startswith("live_")]
        for name, group in {run.about["set"]: rest, f"{run.about['set']} live": live}.items():
            should_call = [first.case.gold is not None for first in group]
            if any(should_call) and not all(should_call):
                yield run.name, name, [f.call for f in group if f.call is not None], should_call, group


def _differences(runs: Sequence[Run]) -> list[str]:
    """The first run against each other one, on the questions that both answered."""
    first, *others = runs
    rows = []
    for other in others:
        theirs = {(f.case.category, f.case.id): f.verdict for f in other.judged}
        for category, ours in _by_category(first.judged).items():
            shared = ((f, theirs.get((category, f.case.id))) for f in ours)
            pairs = [(f.verdict, v, f.case) for f, v in shared if v is not None and f.verdict is not None]
            for name in COMPARED:
                kept = [(a, b) for a, b, case in pairs if name == "calls" or case.gold is not None]
                outcomes = [(WHERE_RIGHT[name](a), WHERE_RIGHT[name](b)) for a, b in kept]
                a, b = outcomes.count((True, False)), outcomes.count((False, True))
                if kept:
                    rows.append(_line(category, first.name, other.name, name, a, b, f"{sign_test(a, b):.2f}"))
    header = _header("category", "first run", "other run", "measure", "only first", "only other", "p (sign test)")
    return ["Run against run", "", *header, *rows, ""] if rows else []


def sign_test(a: int, b: int) -> float:
    """Two-sided exact probability of discordant counts at least this uneven if neither model were better."""
    tail = sum(math.comb(a + b, k) for k in range(min(a, b) + 1))
    return min(1.0, 2.0 * tail / 2 ** (a + b))


def _header(*titles: str) -> list[str]:
    return [_line(*titles), _line(*["---"] * len(titles))]


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _share(metric: Mapping[str, Any] | None) -> str:
    if metric is None or metric["value"] is None:
        return "-"
    return f"{100 * metric['value']:.1f} [{100 * metric['low']:.1f}, {100 * metric['high']:.1f}]"


def _rouge(metric: Mapping[str, Any] | None) -> str:
    return "-" if metric is None else f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"


def _per_cent(value: float | None) -> str:
    return "-" if value is None else f"*{100 * value:.1f}*"


# ---- the picture ----------------------------------------------------------------------------------------------------


def plot(runs: Sequence[Run], path: Path) -> None:
    """Tool selection (dotted: any call) against false positives for every threshold, with what the model writes marked.

    Raises SystemExit where no run has cases of both kinds with probabilities of calling.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    drawn = False
    for run, name, probabilities, should_call, group in _scales(runs):
        points = curve(probabilities, should_call)
        xs = [100 * point.false_positive_rate for point in points]
        selected = [100 * _selection(group, point.value) for point in points]
        (line,) = axes.step(xs, selected, where="post", label=f"{name} ({run})")
        axes.step(xs, [100 * point.recall for point in points], ":", where="post", color=line.get_color())
        x, called, right = (100 * share.value for share in _written(group))
        axes.plot(x, right, "o", color=line.get_color())
        axes.plot(x, called, "o", color=line.get_color(), fillstyle="none")
        drawn = True
    if not drawn:
        raise SystemExit("there is nothing to plot: it takes questions of both kinds and a runtime that weighs choices")
    axes.set(
        xlabel="called without a right call, %", ylabel="right tool chosen (dotted: any tool called), %", xlim=(0, 100)
    )
    axes.grid(alpha=0.3)
    axes.legend(title="●○ as written", fontsize="small")
    figure.savefig(path, dpi=150)
