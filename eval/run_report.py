"""The end that scripts which ask a model have in common: one run's logs, and its report shown and written."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from answers import runs_in


def add_to(command: argparse.ArgumentParser) -> None:
    """The options that `show` reads."""
    command.add_argument("--json", type=Path, help="write the report here as well")
    command.add_argument("--markdown", type=Path, help="write the tables here as well")


def show(report: Mapping[str, Any], tables: str, args: argparse.Namespace) -> None:
    """Print the tables; write them and the report where the options of `add_to` say."""
    print(tables)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if args.markdown:
        args.markdown.write_text(tables + "\n", encoding="utf-8")


def the_run_of(logs: Sequence[Path], benchmark: str, refusal: str) -> dict[str, Any]:
    """What the logs say of their run. Raises SystemExit with ``refusal`` unless all are of one run of it."""
    runs = [about for path in logs for about in runs_in(path)]
    about = runs[0] if runs else {}
    if any(each != about for each in runs) or about.get("benchmark") != benchmark:
        raise SystemExit(refusal)
    return about
