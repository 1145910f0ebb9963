"""Many clients at once against the server: is an answer lost or mixed up, does memory grow, how long does one wait?

    python eval/server_load.py --clients 50 --seconds 120
    python eval/server_load.py --url http://127.0.0.1:8000 --pid 4711

Every question is answered by a call of a tool that the client declares, with the question's own numbers in it.

Starts `qwen-agent serve` on a free port and ends it again, unless --url names one that runs; --pid is its process, to
watch its memory. First each question is asked alone. Then every client streams one greedy chat completion after the
other, and each answer must be, letter for letter, the one that was given alone: an answer that is another question's
counts as mixed up, any other difference as differing, a missing end or an error as lost. A 429 is refused; the client
comes back when it was told to. In between, further clients leave in the middle of an answer.

Memory is the server's resident set, sampled every second. It is flat if the median of the last quarter is not much
above that of the second (the first quarter warms up). Prints Markdown, and JSON with --json FILE.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

# Answers that tell which question they are for: the model calls this tool with the question's numbers.
QUESTIONS = [f"What is {37 + 3 * i} * {91 - 2 * i}?" for i in range(24)]
CALCULATOR = {
    "name": "calculator",
    "description": "Evaluates an arithmetic expression.",
    "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
}
MAX_TOKENS = 60
TIMEOUT = httpx.Timeout(600.0, connect=30.0)


@dataclass(slots=True)
class Tally:
    """What happened, over all clients."""

    answered: int = 0
    differing: int = 0
    mixed_up: int = 0
    lost: list[str] = field(default_factory=list)
    refused: int = 0
    left: int = 0
    tokens: int = 0
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)


class Load:
    """The clients, and what they share."""

    def __init__(self, url: str, model: str, key: str | None, seconds: float) -> None:
        self.url, self.model, self.seconds = url, model, seconds
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.tally = Tally()
        self.alone: dict[str, str] = {}
        self._lock = threading.Lock()
        self._until = 0.0

    def ask_alone(self) -> None:
        with self._client() as client:
            for question in QUESTIONS:
                text, *_ = self._streamed(client, question)
                self.alone[question] = text
        if len(set(self.alone.values())) < len(QUESTIONS):
            raise SystemExit("different questions have the same answer: this model cannot show what is mixed up")

    def run(self, clients: int, leavers: int) -> None:
        """All clients at once, until the time is over and the last answer is there."""
        self._until = time.monotonic() + self.seconds
        threads = [threading.Thread(target=self._stay, args=(i,)) for i in range(clients)]
        threads += [threading.Thread(target=self._leave, args=(i,)) for i in range(leavers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=TIMEOUT, trust_env=False)

    def _body(self, question: str, **changes: Any) -> dict[str, Any]:
        asked = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "tools": [{"type": "function", "function": CALCULATOR}],
            "tool_choice": "required",
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return asked | changes

    def _stay(self, number: int) -> None:
        chance = random.Random(number)
        with self._client() as client:
            while time.monotonic() < self._until:
                question = chance.choice(QUESTIONS)
                try:
                    text, first, whole, tokens = self._streamed(client, question)
                except _Refused as refused:
                    with self._lock:
                        self.tally.refused += 1
                    time.sleep(refused.seconds)
                except Exception as error:  # whatever it was, this answer is lost
                    with self._lock:
                        self.tally.lost.append(f"{type(error).__name__}: {error}")
                else:
                    self._count(question, text, first, whole, tokens)

    def _count(self, question: str, text: str, first: float, whole: float, tokens: int) -> None:
        with self._lock:
            tally = self.tally
            tally.answered += 1
            tally.tokens += tokens
            tally.first.append(first)
            tally.whole.append(whole)
            if text != self.alone[question]:
                others = {self.alone[other] for other in QUESTIONS} - {self.alone[question]}
                tally.mixed_up += text in others
                tally.differing += text not in others
                tally.examples.append(f"{question!r}: {text!r} instead of {self.alone[question]!r}")

    def _leave(self, number: int) -> None:
        """Leave again and again, after a few tokens of a long answer."""
        chance = random.Random(-number - 1)
        while time.monotonic() < self._until:
            with contextlib.suppress(httpx.HTTPError), self._client() as client:
                body = self._body(chance.choice(QUESTIONS), max_tokens=2000, temperature=1.9)
                with client.stream("POST", "/v1/chat/completions", json=body) as response:
                    for seen, _ in enumerate(response.iter_lines()):
                        if seen > 6:
                            break
                with self._lock:
                    self.tally.left += response.status_code == 200
            time.sleep(2 * chance.random())

    def _streamed(self, client: httpx.Client, question: str) -> tuple[str, float, float, int]:
        """The answer, the seconds to its first token and to its end, and its tokens. Raises for one that has no end."""
        began, first, text, finish, tokens = time.monotonic(), None, "", None, 0
        with client.stream("POST", "/v1/chat/completions", json=self._body(question)) as response:
            if response.status_code == 429:
                raise _Refused(float(response.headers.get("retry-after", 1)))
            if response.status_code != 200:
                raise RuntimeError(f"status {response.status_code}: {response.read()[:200]!r}")
            done = False
            for line in response.iter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    done = True
                    break
                event = json.loads(line[6:])
                if "error" in event:
                    raise RuntimeError(event["error"]["message"])
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
                for choice in event["choices"]:
                    piece = _written(choice["delta"])
                    first = first or (time.monotonic() if piece else None)
                    text += piece
                    finish = choice["finish_reason"] or finish
        if not done or finish is None:
            raise RuntimeError(f"the stream ended in the middle, after {text!r}")
        ended = time.monotonic()
        return text, (first or ended) - began, ended - began, tokens


def _written(delta: dict[str, Any]) -> str:
    """All that a piece of a message says: thought, text, and the arguments of a call."""
    called = "".join(call["function"].get("arguments", "") for call in delta.get("tool_calls") or ())
    return (delta.get("reasoning_content") or "") + (delta.get("content") or "") + called


class _Refused(Exception):
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


class Memory:
    """The resident set of a process, sampled every second by a thread of its own."""

    def __init__(self, pid: int | None) -> None:
        self.samples: list[float] = []  # MiB
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while self._pid is not None and not self._stop.wait(1.0):
            with contextlib.suppress(OSError, IndexError):
                pages = int(Path(f"/proc/{self._pid}/statm").read_text().split()[1])
                self.samples.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)

    def quarters(self) -> list[float]:
        """The median of each quarter of the time, in MiB."""
        size = len(self.samples) // 4
        return [statistics.median(self.samples[i * size : (i + 1) * size]) for i in range(4)] if size else []


@contextlib.contextmanager
def started(options: Sequence[str]) -> Iterator[tuple[str, int]]:
    """`qwen-agent serve` on a free port: its URL and process."""
    command = [sys.executable, "-m", "qwen_agent", "serve", "--port", "0", "--no-log-requests", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = ""
            for line in process.stderr:
                said += line
                if found := re.search(r"http://\S+?(?=/v1)", line):
                    threading.Thread(target=process.stderr.read, daemon=True).start()  # or its pipe fills up
                    yield found[0], process.pid
                    return
            raise SystemExit(f"the server did not start:\n{said}")
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def free_again(url: str, headers: dict[str, str], seconds: float = 15.0) -> tuple[float, float]:
    """How many generations have a place, and wait for one, once everybody has left."""
    end = time.monotonic() + seconds
    while True:
        text = httpx.get(f"{url}/metrics", headers=headers, trust_env=False, timeout=30).text
        active, waiting = (
            float(re.findall(rf"^qwen_agent_{name} (\S+)", text, re.M)[0]) for name in ("active", "waiting")
        )
        if not active + waiting or time.monotonic() > end:
            return active, waiting
        time.sleep(0.5)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")


def report(load: Load, memory: Memory, clients: int, places: tuple[float, float]) -> dict[str, Any]:
    tally = load.tally
    told = {name: value for name, value in asdict(tally).items() if name not in ("first", "whole")}
    times = {
        f"{name}_p{round(100 * share)}": percentile(values, share)
        for name, values in (("first_token", tally.first), ("whole", tally.whole))
        for share in (0.5, 0.95, 0.99)
    }
    return {
        "clients": clients,
        "seconds": load.seconds,
        **told,
        **times,
        "tokens_per_second": tally.tokens / load.seconds,
        "memory_mib_by_quarter": memory.quarters(),
        "active_afterwards": places[0],
        "waiting_afterwards": places[1],
    }


def table(told: dict[str, Any]) -> Iterator[str]:
    yield f"{told['clients']} streaming clients for {told['seconds']:g} s, {len(QUESTIONS)} questions:\n"
    yield "| | |"
    yield "| --- | --- |"
    yield f"| answered | {told['answered']} |"
    yield f"| lost | {len(told['lost'])} |"
    yield f"| mixed up | {told['mixed_up']} |"
    yield f"| differing from the answer given alone | {told['differing']} |"
    yield f"| refused (429), then asked again | {told['refused']} |"
    yield f"| left in the middle | {told['left']} |"
    yield f"| generations left over afterwards | {told['active_afterwards'] + told['waiting_afterwards']:g} |"
    yield f"| tokens a second, all together | {told['tokens_per_second']:.1f} |"
    for name, words in (("first_token", "to the first token"), ("whole", "of a whole request")):
        spread = " / ".join(f"{told[f'{name}_p{p}']:.2f}" for p in (50, 95, 99))
        yield f"| seconds {words}, p50 / p95 / p99 | {spread} |"
    if quarters := told["memory_mib_by_quarter"]:
        yield f"| server's memory, median of each quarter | {', '.join(f'{mib:.0f}' for mib in quarters)} MiB |"
    for line in (*told["lost"][:5], *told["examples"][:5]):
        yield f"\n- {line}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--leavers", type=int, default=2, help="clients that leave in the middle, again and again")
    parser.add_argument("--url", help="a server that runs, without /v1")
    parser.add_argument("--pid", type=int, help="its process")
    parser.add_argument("--model", default="embedded", help="the name it serves")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("serve", nargs="*", help="options for qwen-agent serve, after --")
    args = parser.parse_args()
    key = os.environ.get("QWEN_AGENT_API_KEY")
    server = contextlib.nullcontext((args.url, args.pid)) if args.url else started(args.serve)
    with server as (url, pid):
        load = Load(url, args.model, key, args.seconds)
        load.ask_alone()
        with Memory(pid) as memory:
            load.run(args.clients, args.leavers)
        told = report(load, memory, args.clients, free_again(url, load.headers))
    print(*table(told), sep="\n")
    if args.json is not None:
        args.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
