"""Which tool does a model choose first, and is the call well-formed and right? BFCL questions in Qwen's ReAct format.

    python eval/tool_choice.py run MODEL --data bfcl --out step.jsonl                    our own runtime
    python eval/tool_choice.py run MODEL --data bfcl --out free.jsonl --grammar none     the same, unconstrained
    python eval/tool_choice.py report step.jsonl free.jsonl [--plot curve.png]           tables, and a comparison

Decoding is greedy, one prompt at a time. ``--grammar step`` is what agents use; "names" constrains only tool names.
A run that was interrupted goes on where it stopped. ``--shard 3/8`` asks every eighth question from the third on; give
each shard its own file, and all of them to ``report``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import choice_report
from bfcl import CATEGORIES, Case, load
from first_steps import GRAMMARS, Answer, ask
from verdict import verdict

from qwen_agent import load_runtime
from qwen_agent.llm.hub import resolve_model


def main() -> None:
    args = _arguments()
    if args.command == "run":
        run(args)
    else:
        choice_report.report(args.files, args.data, args.plot)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="ask a model, write its raw texts and what they are worth")
    runs.add_argument("model", help="embedded, a folder or a hub id")
    runs.add_argument("--data", type=Path, required=True, help="folder with the BFCL files")
    runs.add_argument("--out", type=Path, required=True, help="JSON Lines file, one line a question")
    runs.add_argument(
        "--categories", nargs="+", choices=CATEGORIES, default=["simple_python", "multiple", "irrelevance"]
    )
    runs.add_argument("--limit", type=int, default=10**6, help="questions a category")
    runs.add_argument("--shard", type=_shard, default=(1, 1), metavar="I/N", help="only the I-th of N parts")
    runs.add_argument("--grammar", choices=GRAMMARS, default="step", help="what the model may write")
    runs.add_argument("--whole", action="store_true", help="schemas say what is inside lists and objects")
    runs.add_argument("--device", default="cpu", help="cpu or cuda")
    runs.add_argument("--dense", action="store_true", help="dense bfloat16 weights, faster on a GPU")
    runs.add_argument("--reference", action="store_true", help="through transformers in bfloat16, in batches")
    runs.add_argument("--batch", type=int, default=32, help="prompts at once (reference only)")
    reports = commands.add_parser("report", help="tables of what runs wrote; needs no model")
    reports.add_argument("files", type=Path, nargs="+", help="what `run` wrote, all shards of all runs")
    reports.add_argument("--data", type=Path, help="folder with the BFCL files: judge the texts anew")
    reports.add_argument("--plot", type=Path, help="write the curves of recall and false positives here (PNG)")
    args = parser.parse_args()
    if args.command == "run" and args.reference and args.grammar == "step":
        parser.error("--reference needs --grammar names or none: transformers has no grammar here")
    return args


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is no part of a whole: give 1/4, 2/4, 3/4 or 4/4, say")
    return int(index), int(count)


def run(args: argparse.Namespace) -> None:
    about = {
        "model": args.model,
        "weights": "transformers" if args.reference else "dense" if args.dense else "stored",
        "grammar": args.grammar,
        "schemas": "whole" if args.whole else "shallow",
    }
    done = {(row["category"], row["id"]) for row in choice_report.rows(args.out) if _same(row, about, args.out)}
    cases = [case for case in _cases(args) if (case.category, case.id) not in done]
    started, tokens = time.monotonic(), 0
    with args.out.open("a", encoding="utf-8") as out:
        for count, answer in enumerate(_answers(args, cases) if cases else (), 1):
            out.write(json.dumps({"run": about, **_row(answer)}, ensure_ascii=False) + "\n")
            out.flush()
            tokens += answer.tokens
            seconds = time.monotonic() - started
            print(f"\r{count}/{len(cases)}  {tokens} tokens  {seconds:.0f} s", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    if args.shard == (1, 1):
        choice_report.report([args.out], None, None)


def _same(row: dict[str, Any], about: dict[str, str], path: Path) -> bool:
    if row["run"] != about:
        raise SystemExit(f"{path} holds another run ({row['run']}): give --out a new file")
    return True


def _cases(args: argparse.Namespace) -> list[Case]:
    index, count = args.shard
    cases = [case for name in args.categories for case in load(args.data, name, args.limit, whole=args.whole)]
    return cases[index - 1 :: count]


def _answers(args: argparse.Namespace, cases: list[Case]) -> Iterator[Answer]:
    folder = resolve_model(args.model)
    if args.reference:
        from reference import ask_transformers  # transformers is needed for this alone

        names = args.grammar == "names"
        return ask_transformers(folder, cases, names=names, batch=args.batch, device=args.device)
    if args.dense:
        from dense import dense_runtime

        return ask(dense_runtime(folder, args.device), cases, args.grammar)
    return ask(load_runtime(folder, device=args.device), cases, args.grammar)


def _row(answer: Answer) -> dict[str, Any]:
    return {
        "category": answer.case.category,
        "id": answer.case.id,
        "text": answer.text,
        "tokens": answer.tokens,
        "cut": answer.cut,
        "weights": answer.weights,
        "verdict": asdict(verdict(answer.case, answer.text, answer.cut)),
    }


if __name__ == "__main__":
    main()
