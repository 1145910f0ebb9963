"""The options of a script that say which model is asked, for how long, and of how much of the whole."""

from __future__ import annotations

import argparse
import functools
import os
from pathlib import Path

from answers import Ask, endpoint, load, local, shard

from qwen_agent.llm.runtime import Runtime

KEY_VARIABLE = "OPENAI_API_KEY"


def add_to(parser: argparse.ArgumentParser, *, max_new_tokens: int) -> None:
    parser.add_argument("model", help="embedded, a folder or a hub id; with --url the name that the server knows")
    parser.add_argument("--out", type=Path, required=True, help="the log of the answers (JSON Lines): resumed if there")
    parser.add_argument("--url", help=f"an OpenAI-compatible endpoint; its key is read from {KEY_VARIABLE}")
    parser.add_argument("--concurrency", type=int, default=8, help="questions at a time, with --url")
    parser.add_argument("--workers", type=int, default=1, help="processes with a copy of the model each, without --url")
    parser.add_argument("--limit", type=int, help="only the first N")
    parser.add_argument("--shard", type=shard, default=(1, 1), metavar="I/N", help="only the I-th of N parts")
    parser.add_argument("--max-new-tokens", type=int, default=max_new_tokens)


def asker(args: argparse.Namespace) -> Ask:
    """Whoever answers. A model on this machine is loaded when the first question is asked, once."""
    if args.url:
        return endpoint(args.url, args.model, os.environ.get(KEY_VARIABLE, ""), concurrency=args.concurrency)
    return local(args.model, workers=args.workers, load=load_once)


@functools.cache
def load_once(model: str) -> Runtime:
    return load(model)
