"""The academic sets of Qwen's report card by lm-evaluation-harness: MMLU, C-Eval, CMMLU, GSM8K, HumanEval, WMT22.

    python eval/academic.py run embedded --data DIR --out OUT --sets mmlu gsm8k --limit 5
    python eval/academic.py run NAME --url http://127.0.0.1:8000/v1 --concurrency 8 --data DIR --out OUT --sets mmlu
    python eval/academic.py report OUT --markdown report.md --json report.json

DIR holds a folder for each set; eval/EVALUATION.md says where they are from. Nothing is downloaded. Every answer is
kept in OUT as it comes: a run that was killed goes on where it ended. ``--shard 2/8`` takes the second of eight parts;
``report`` puts the parts of one OUT, or of several, together. With --url the harness's own clients ask an
OpenAI-compatible server: likelihoods need its /v1/completions with echo and logprobs, and /tokenize.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from qwen_agent.errors import InputError, MissingDependency, QwenAgentError

try:
    import lm_eval
    from academic_model import RuntimeLM
    from academic_report import SETS, Set, markdown, read_parts, summary
    from academic_sets.files import Part, digest, digests
    from academic_sets.multiple_choice import choice
    from lm_eval.api.model import LM, CachingLM
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager
    from sqlitedict import SqliteDict
except ImportError as error:
    sys.exit(str(MissingDependency(error.name or "lm-eval", "eval")))

PACK = Path(__file__).with_name("academic_sets")
KEY_VARIABLE = "OPENAI_API_KEY"


def main() -> None:
    args = _arguments()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        if args.command == "run":
            run(args)
        else:
            report(args)
    except QwenAgentError as error:
        sys.exit(f"error: {error}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run_ = commands.add_parser("run", help="ask a model")
    run_.add_argument("model", help="embedded, a folder or a hub id; with --url the name that the server knows")
    run_.add_argument("--data", type=Path, required=True, help="the folder with a folder for each set")
    run_.add_argument("--out", type=Path, required=True, help="the folder for answers and results")
    run_.add_argument("--sets", nargs="+", choices=list(SETS), required=True)
    run_.add_argument("--limit", type=int, help="only the first N questions of each subject, or of a set without any")
    run_.add_argument("--shard", default="1/1", metavar="I/N", help="only the I-th of N parts")
    run_.add_argument("--device", help="cpu, cuda, cuda:1")
    run_.add_argument("--max-length", type=int, help="most tokens that are read; of longer prompts the end is kept")
    run_.add_argument("--max-errors", type=float, default=0.02, help="share of errors that fails the run")
    run_.add_argument("--url", help=f"an OpenAI-compatible endpoint, up to /v1; its key is read from {KEY_VARIABLE}")
    run_.add_argument("--concurrency", type=int, default=8, help="requests at a time, with --url")
    run_.add_argument("--gsm8k-shots", type=Path, help="the original's gsm8k_prompt.txt")
    run_.add_argument("--wmt-source", type=Path, help="English lines of WMT22")
    run_.add_argument("--wmt-reference", type=Path, help="as many Chinese lines (reference A)")
    run_.add_argument("--wmt-shots", type=Path, help="examples for WMT22: English, a tab, Chinese")
    report_ = commands.add_parser("report", help="put parts together and make the tables")
    report_.add_argument("results", type=Path, nargs="+", help="folders or files of results")
    report_.add_argument("--partial", action="store_true", help="even if parts are missing")
    for command in (run_, report_):
        command.add_argument("--json", type=Path, help="also write the report here as JSON")
        command.add_argument("--markdown", type=Path, help="also write the tables here")
    return parser.parse_args()


def report(args: argparse.Namespace) -> None:
    _tell(read_parts(args.results, partial=args.partial), args)


def _tell(results: Mapping[str, Mapping[str, Any]], args: argparse.Namespace) -> None:
    page = markdown(results)
    print(page, end="")
    if args.markdown is not None:
        args.markdown.write_text(page, encoding="utf-8")
    if args.json is not None:
        args.json.write_text(json.dumps(summary(results), ensure_ascii=False, indent=1), encoding="utf-8")


# ---- a run


def run(args: argparse.Namespace) -> None:
    """Ask for each set in turn; the results of each are written as soon as it is done. Too many errors exit with 1."""
    Part.of(args.limit, args.shard)  # before a model is loaded
    options = {name: _options(name, args) for name in args.sets}
    args.out.mkdir(parents=True, exist_ok=True)
    models = _Remote(args) if args.url else _Local(args)
    paths = []
    for name in args.sets:
        path = args.out / f"{name}.{args.shard.replace('/', '-of-')}.json"
        _check_model(path, models.identity)
        _write(path, _answered(name, models, options[name], args))
        paths.append(path)
    results = read_parts(paths, partial=True)
    _tell(results, args)
    _check_errors(results, args.max_errors)


def _check_model(path: Path, identity: Mapping[str, str]) -> None:
    """A folder is for one model: its results would be written over."""
    if path.exists() and (other := json.loads(path.read_text(encoding="utf-8"))["model"]) != identity:
        raise InputError(f"{path} is of another model ({json.dumps(other)}): give another --out")


def _answered(name: str, models: _Local | _Remote, options: dict[str, str], args: argparse.Namespace) -> dict[str, Any]:
    try:
        return _ask(name, models, options, args)
    except QwenAgentError:
        raise
    except Exception as error:  # the harness's clients raise what their libraries do
        if not args.url:
            raise
        message = f"{name}: {args.url} failed ({type(error).__name__}: {error}); a rerun asks what is missing"
        raise QwenAgentError(message) from error


def _options(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """What the task is told: where its data are, and what belongs to the set alone. Raises InputError."""
    if name == "wmt22":
        if args.wmt_source is None or args.wmt_reference is None:
            raise InputError("wmt22 needs --wmt-source and --wmt-reference: see eval/EVALUATION.md")
        given = {"source": args.wmt_source, "reference": args.wmt_reference, "shots": args.wmt_shots}
        return {key: str(path) for key, path in given.items() if path is not None}
    folder = args.data / name.removesuffix("-chat")  # two ways to ask share the data
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: see eval/EVALUATION.md for where the data are from")
    shots = {"shots": str(args.gsm8k_shots)} if name == "gsm8k" and args.gsm8k_shots is not None else {}
    return {"data": str(args.data), **shots}


def _digests(name: str, options: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 of all files that the set is made of."""
    files = {Path(path).name: digest(Path(path)) for key, path in options.items() if key != "data"}
    if "data" in options:
        files |= digests(Path(options["data"]) / name.removesuffix("-chat"))
    return files


def _ask(name: str, models: _Local | _Remote, options: dict[str, str], args: argparse.Namespace) -> dict[str, Any]:
    started = time.perf_counter()
    kind = SETS[name]
    told: dict[str, Any] = options | {"limit": args.limit, "shard": args.shard}
    tasks = TaskManager(include_path=PACK, include_defaults=False, metadata=told).load([kind.task])
    model, identity = models.get(kind), models.identity
    cache = args.out / f"{name}.{args.shard.replace('/', '-of-')}.{_short(identity, args.max_length)}.db"
    kept = _keep(cache, empty=not models.empty_is_error)
    print(f"{name}: {kept} answers are kept from before" if kept else name, file=sys.stderr, flush=True)
    cut = getattr(model, "cut", 0)
    with _closed(CachingLM(model, str(cache))) as caching:
        found = evaluate(caching, tasks, bootstrap_iters=0, apply_chat_template=kind.chat, fewshot_as_multiturn=True)
    assert found is not None
    return {
        "set": name,
        "version": found["versions"][kind.task],
        "model": identity,
        "settings": {"limit": args.limit, "max_length": args.max_length, "chat": kind.chat},
        "harness": f"lm-eval {lm_eval.__version__}",
        "data": _digests(name, options),
        "shard": args.shard,
        "cut": getattr(model, "cut", 0) - cut,
        "seconds": time.perf_counter() - started,
        "rows": [_row(sample, models.empty_is_error) for sample in found["samples"][kind.task]],
    }


def _row(sample: Mapping[str, Any], empty_is_error: bool) -> dict[str, Any]:
    """A question, what was said and what it was worth, without the prompt."""
    doc = sample["doc"]
    row = {"id": doc["id"], "answer": doc["answer"], "error": False}
    if "subject" in doc:
        said = choice(sample["filtered_resps"])
        return row | {"subject": doc["subject"], "said": said, "right": said == doc["answer"]}
    said = sample["filtered_resps"][0]
    scores = {key: sample[key] for key in sample["metrics"] if key != "bleu"}  # BLEU is of the whole set
    return row | {"said": said, "error": empty_is_error and not said.strip()} | scores


def _check_errors(results: Mapping[str, Mapping[str, Any]], most: float) -> None:
    for name, result in results.items():
        errors = [row["id"] for row in result["rows"] if row["error"]]
        if len(errors) > most * len(result["rows"]):
            shown = ", ".join(errors[:5]) + (", ..." if len(errors) > 5 else "")
            sys.exit(f"{name}: {len(errors)} of {len(result['rows'])} replies are empty ({shown}): the score is void")


def _write(path: Path, result: Mapping[str, Any]) -> None:
    """All of it or nothing."""
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(result, ensure_ascii=False), encoding="utf-8")
    scratch.replace(path)


# ---- answers from before


def _keep(cache: Path, *, empty: bool) -> int:
    """How many answers there are from before, after empty replies are thrown away unless they are kept too."""
    if not cache.exists():
        return 0
    with SqliteDict(str(cache), autocommit=True) as kept:
        for key in [] if empty else [key for key, said in kept.items() if isinstance(said, str) and not said.strip()]:
            del kept[key]
        return len(kept)


@contextmanager
def _closed(caching: CachingLM) -> Iterator[CachingLM]:
    try:
        yield caching
    finally:
        caching.dbdict.close()


def _short(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


# ---- models


class _Local:
    """The model on this machine, loaded once for all sets. If it says nothing, that is its answer."""

    empty_is_error = False

    def __init__(self, args: argparse.Namespace) -> None:
        from qwen_agent.llm.hub import resolve_model
        from qwen_agent.llm.local import load_runtime

        folder = resolve_model(args.model)
        runtime = load_runtime(folder, device=args.device)
        model = runtime.model
        self.identity = {
            "name": args.model,
            "files": fingerprint(folder),
            "device": model.device.type,
            "dtype": str(getattr(model, "dtype", "")).removeprefix("torch."),
        }
        self._model = RuntimeLM(runtime, max_length=args.max_length)

    def get(self, kind: Set) -> LM:
        return self._model


def fingerprint(folder: Path) -> str:
    """What tells a checkpoint from another without reading its weights: the config, and each file's size and date."""
    files = ((path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file())
    listed = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]
    return _short((folder / "config.json").read_text(encoding="utf-8"), listed)


class _Remote:
    """A model behind an endpoint, asked by the harness's own clients."""

    empty_is_error = True  # it may be the server's: neither a right nor a wrong answer

    def __init__(self, args: argparse.Namespace) -> None:
        url = args.url.rstrip("/")
        key = os.environ.get(KEY_VARIABLE, "")
        self.identity = {"name": args.model, "url": url}
        self._shared = {
            "model": args.model,
            "num_concurrent": args.concurrency,
            "max_length": args.max_length or served_length(url, args.model, key),
            "auth_token": key or None,
        }

    def get(self, kind: Set) -> LM:
        from lm_eval.api.registry import get_model

        url, shared = self.identity["url"], self._shared
        if kind.chat:
            return get_model("local-chat-completions")(base_url=f"{url}/chat/completions", **shared)
        return get_model("local-completions")(base_url=f"{url}/completions", tokenizer_backend="remote", **shared)


def served_length(url: str, model: str, key: str) -> int:
    """How many tokens a server reads of this model, from its list of models. Raises InputError."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        reply = httpx.get(f"{url}/models", headers=headers, timeout=30).raise_for_status()
        listed = {each["id"]: each for each in reply.json()["data"]}
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{url}/models does not list any models ({error}): is this the address up to /v1?") from None
    if model not in listed:
        raise InputError(f"{url} serves no {model!r}: it has {', '.join(listed)}")
    length = listed[model].get("max_model_len")
    if not isinstance(length, int):
        raise InputError(f"{url} does not say how many tokens {model} reads: give --max-length")
    return length


if __name__ == "__main__":
    main()
