"""How well a model uses tools: which one it chooses first, with which input, and whether it calls where it should not.

    python eval/tool_use.py run embedded --set bfcl --data BFCL --out bfcl.jsonl --workers 2
    python eval/tool_use.py run MODEL --set acebench --data ACEBENCH --out ace.jsonl --url http://127.0.0.1:8000/v1
    python eval/tool_use.py report bfcl.jsonl [MORE.jsonl] [--json OUT] [--markdown OUT] [--plot curve.png]
    python eval/tool_use.py score --positive FILE --negative FILE --rules qwen-2023-08 --json OUT

``run`` asks for the first step to every question of a set, greedily, and keeps the answers in a log: a run that was
ended goes on where it was. ``--grammar step`` is what agents use; "names" constrains only tool names. ``report`` makes
the tables of one or several logs (shards, or different runs) from the texts and the data, without a model. ``score``
applies the original's rules to answers of any origin: rows with ``prompt``, ``response`` and ``gen``, a list with one
text. It needs neither a model nor torch.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import model_options
import original_scores
import tool_report
from answers import About, Ask, collect, endpoint, local, part, recorded, runs_in
from cases import Case, shallow
from first_steps import GRAMMARS, NEW_TOKENS, questions_of
from rouge_tokens import tokens_of
from rules import RULES
from tool_sets import NAMES, SETS, digests

from qwen_agent import __version__
from qwen_agent.errors import QwenAgentError
from qwen_agent.llm.runtime import Runtime

MAX_ERRORS = 0.02


def main() -> None:
    args = _arguments()
    try:
        args.command(args)
    except QwenAgentError as error:
        raise SystemExit(f"{error}") from None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    runs = commands.add_parser("run", help="ask a model")
    model_options.add_to(runs, max_new_tokens=NEW_TOKENS)
    runs.add_argument("--set", choices=SETS, required=True, help="; ".join(f"{k}: {v}" for k, v in NAMES.items()))
    runs.add_argument("--data", type=Path, required=True, help="the folder with the set's files")
    runs.add_argument("--categories", nargs="+", help="parts of the set (default: all of them)")
    runs.add_argument("--grammar", choices=GRAMMARS, help="what may be written (default: step, with --url none)")
    runs.add_argument("--weigh", action="store_true", help="ask an endpoint for the probability of calling, too")
    runs.add_argument("--whole", action="store_true", help="schemas say what is inside lists and objects")
    runs.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
    runs.add_argument("--dense", action="store_true", help="dense bfloat16 weights, faster on a GPU")
    runs.add_argument("--reference", action="store_true", help="through transformers in bfloat16, in batches")
    runs.add_argument("--batch", type=int, default=32, help="prompts at once (reference only)")
    runs.set_defaults(command=run)
    reports = commands.add_parser("report", help="tables of what runs wrote; needs no model")
    reports.add_argument("files", type=Path, nargs="+", help="what `run` wrote: all shards of all runs, of one set")
    reports.add_argument("--data", type=Path, help="the folder with the set's files, if they were moved")
    reports.add_argument("--partial", action="store_true", help="make tables although answers are missing")
    reports.add_argument("--plot", type=Path, help="draw tool selection against false positives here (PNG)")
    reports.set_defaults(command=report)
    scores = commands.add_parser("score", help="the original's rules on rows with 'prompt', 'response' and 'gen'")
    scores.add_argument("--positive", type=Path, help="rows where a call is right (JSON Lines)")
    scores.add_argument("--negative", type=Path, help="rows where none is right (JSON Lines)")
    scores.add_argument("--rules", choices=RULES, required=True, help="which version of the rules")
    scores.set_defaults(command=score)
    for each in (reports, scores):
        each.add_argument("--json", type=Path, help="write the report here as JSON")
        each.add_argument("--tokenizer", type=Path, help="qwen.tiktoken, or its folder, for Tool Input")
        each.add_argument("--max-errors", type=float, default=MAX_ERRORS, help="share of answers that may be missing")
    reports.add_argument("--markdown", type=Path, help="write the tables here")
    args = parser.parse_args()
    if args.command is run:
        _check(args, parser.error)
    return args


def _check(args: argparse.Namespace, error: Callable[[str], Any]) -> None:
    args.grammar = args.grammar or ("none" if args.url else "step")
    if args.weigh and not args.url:
        error("--weigh goes with --url: a model on this machine weighs its choices unasked")
    if args.reference and args.grammar == "step":
        error("--reference needs --grammar names or none: transformers has no grammar here")
    if args.url and (args.reference or args.dense or args.device):
        error("--url says who answers: leave out --reference, --dense and --device")
    if not args.data.is_dir():
        error(f"--data {args.data} is no folder")
    known = SETS[args.set].categories(args.data)
    args.categories = list(args.categories or known)
    unknown = [name for name in args.categories if name not in known]
    if unknown or not known:
        error(f"{args.set} has no category {', '.join(map(repr, unknown))}: choose from {', '.join(known) or 'none'}")


# ---- run ------------------------------------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> None:
    about = {
        "set": args.set,
        "data": str(args.data),
        "sha256": digests(args.set, args.data, args.categories),
        "categories": args.categories,
        "limit": args.limit,
        "model": args.model,
        "weights": _weights(args),
        "grammar": args.grammar,
        "schemas": "whole" if args.whole else "shallow",
        "max_new_tokens": args.max_new_tokens,
    }
    cases = cases_of(about, args.data)
    questions = questions_of(part(cases, args.shard), args.grammar, args.max_new_tokens)
    collect(questions, _ask(args, cases), args.out, about)
    if args.shard == (1, 1):
        print(*_tables([judged(about, [args.out], args.data)], None)[1:], sep="\n")


def cases_of(about: About, folder: Path) -> list[Case]:
    """The cases of a run, in the order of the data; ``limit`` counts in each category."""
    load = SETS[about["set"]].load
    cases = [case for name in about["categories"] for case in list(load(folder, name))[: about["limit"]]]
    return cases if about["schemas"] == "whole" else list(map(shallow, cases))


def _weights(args: argparse.Namespace) -> str:
    return "endpoint" if args.url else "transformers" if args.reference else "dense" if args.dense else "stored"


def _ask(args: argparse.Namespace, cases: Sequence[Case]) -> Ask:
    if args.url:
        key = os.environ.get(model_options.KEY_VARIABLE, "")
        guided = args.grammar != "none"
        return endpoint(args.url, args.model, key, concurrency=args.concurrency, guided=guided, weigh=args.weigh)
    if args.reference:
        from reference import ask_transformers  # transformers is needed for this alone

        names = (
            {f"{c.category}/{c.id}": [f.name for f in c.functions] for c in cases} if args.grammar == "names" else {}
        )
        return partial(ask_transformers, args.model, names, batch=args.batch, device=args.device or "cpu")
    return local(args.model, workers=args.workers, load=partial(_load, device=args.device, dense=args.dense))


def _load(model: str, device: str | None, dense: bool) -> Runtime:
    from qwen_agent.llm.hub import resolve_model
    from qwen_agent.llm.local import load_runtime

    if dense:
        from dense import dense_runtime

        return dense_runtime(resolve_model(model), device or "cpu")
    return load_runtime(model, device=device)


# ---- report ---------------------------------------------------------------------------------------------------------


def report(args: argparse.Namespace) -> None:
    logs: dict[str, tuple[About, list[Path]]] = {}
    for path in args.files:
        for about in runs_in(path):
            same = json.dumps({**about, "data": ""}, sort_keys=True)
            logs.setdefault(same, (about, []))[1].append(path)
    if not logs:
        raise SystemExit("these files hold no answers: run `run` first")
    runs = [judged(about, paths, args.data or Path(about["data"])) for about, paths in logs.values()]
    if len({found.about["set"] for found in runs}) > 1:
        raise SystemExit("these are runs of different sets: make a report of each")
    missing = [f"{found.name}: {found.asked} of {len(found.firsts)} asked" for found in runs if not complete(found)]
    if missing and not args.partial:
        raise SystemExit(f"INCOMPLETE, no report: {'; '.join(missing)}\nrun the rest (all shards), or say --partial")
    reports, text = _tables(runs, args.tokenizer)
    if args.plot is not None:
        tool_report.plot(runs, args.plot)
    print(text)
    _write(args.json, json.dumps(reports[0] if len(reports) == 1 else reports, indent=2, ensure_ascii=False) + "\n")
    _write(args.markdown, text + "\n")
    for found in runs:
        _refuse_errors(len(found.errors), found.asked, args.max_errors, found.errors[0].error if found.errors else "")


def judged(about: About, paths: Sequence[Path], folder: Path) -> tool_report.Run:
    """A run from its logs. Raises SystemExit if the data are not those that it was asked with."""
    if digests(about["set"], folder, about["categories"]) != about["sha256"]:
        raise SystemExit(f"the files in {folder} are not those that were asked: give --data the same ones")
    cases = cases_of(about, folder)
    questions = questions_of(cases, about["grammar"], about["max_new_tokens"])
    return tool_report.judged(about, cases, recorded(paths, questions, about))


def complete(run: tool_report.Run) -> bool:
    return run.asked == len(run.firsts)


def _tables(runs: Sequence[tool_report.Run], tokenizer: Path | None) -> tuple[list[dict[str, Any]], str]:
    tokenize, tokens = tokens_of(tokenizer)
    reports = [{**tool_report.as_json(found, tokenize, tokens), "qwen_agent": __version__} for found in runs]
    return reports, tool_report.as_markdown(runs, reports, NAMES[runs[0].about["set"]])


def _refuse_errors(errors: int, total: int, most: float, example: str) -> None:
    if errors > most * total:
        raise SystemExit(f"{errors} of {total} answers are missing ({example}), more than {most:.1%}: not a score")


def _write(path: Path | None, text: str) -> None:
    if path is not None:
        path.write_text(text, encoding="utf-8")


# ---- score ----------------------------------------------------------------------------------------------------------


def score(args: argparse.Namespace) -> None:
    if args.positive is None and args.negative is None:
        raise SystemExit("there is nothing to score: give --positive FILE, --negative FILE or both")
    tokenize, tokens = tokens_of(args.tokenizer)
    found = original_scores.scores(args.positive, args.negative, RULES[args.rules], tokenize)
    found |= {"tokenizer": tokens, "qwen_agent": __version__}
    _write(args.json, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    print(original_scores.as_text(found))
    for counts in found["counts"].values():
        _refuse_errors(counts["errors"], counts["n"], args.max_errors, "no text in 'gen'")


if __name__ == "__main__":
    main()
