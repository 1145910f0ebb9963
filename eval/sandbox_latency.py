"""How long the sandbox takes to start and to answer, beside ipykernel in the same run; and whether it leaks.

    python eval/sandbox_latency.py --peer /tmp/peers/bin/python

Rounds in which the sandbox, the unsafe child process and ipykernel take turns, so that a busy machine slows them all;
figures are medians, in milliseconds. "start" ends when an empty cell has run; "first call" is the first ``1+1`` after
it, "warm call" the median of 20 more; "restart" forgets the variables and ends when an empty cell has run again.

ipykernel is driven by jupyter_client in a Python of its own, because it is no dependency of this project:
``python -m venv /tmp/peers && /tmp/peers/bin/pip install ipykernel jupyter_client``. Without ``--peer`` it is left out.

Then --cycles interpreters are made, called and dropped one after the other; processes, open files, threads and
temporary folders are counted before and after.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WARM_CALLS = 20
ROWS = ("start", "first call", "warm call", "restart")

Round = dict[str, float]  # seconds by row


def main() -> None:
    args = _arguments()
    if args.serve_peer:
        serve_peer()
    else:
        measure(args)


def measure(args: argparse.Namespace) -> None:
    probe = timed(_open_and_close)
    systems: dict[str, Callable[[], Round]] = {"sandbox": sandbox_round, "unsafe child process": unsafe_round}
    peer = _Peer(args.peer) if args.peer else None
    if peer:
        systems[peer.name] = peer.round
    found: dict[str, list[Round]] = {name: [] for name in systems}
    for number in range(args.rounds):
        for name, one_round in systems.items():
            found[name].append(one_round())
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr, flush=True)
    if peer:
        peer.close()
    report(found, probe, args.rounds)
    if not peer:
        print("\nipykernel was not measured: give --peer PYTHON, one that has ipykernel and jupyter_client installed.")
    if args.cycles:
        cycle(args.cycles)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cycles", type=int, default=200, help="start/stop cycles of the leak check")
    parser.add_argument("--peer", default="", help="a Python with ipykernel and jupyter_client")
    parser.add_argument("--serve-peer", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def sandbox_round() -> Round:
    from qwen_agent.tools.sandbox import open_sandbox

    return session_round(lambda folder: open_sandbox(folder))


def unsafe_round() -> Round:
    from qwen_agent.tools.sandbox.policy import Limits
    from qwen_agent.tools.sandbox.unsafe import UnsafeSession

    return session_round(lambda folder: UnsafeSession(folder, Limits()))


def session_round(opened: Callable[[Path], Any]) -> Round:
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        session = opened(Path(folder))
        try:
            session.run("")
            result = {"start": time.perf_counter() - started}
            result |= calls(lambda: _check(session.run("1+1").value))
            started = time.perf_counter()
            session.reset()
            session.run("")
            return result | {"restart": time.perf_counter() - started}
        finally:
            session.close()


def calls(call: Callable[[], object]) -> Round:
    first = timed(call)
    return {"first call": first, "warm call": statistics.median(timed(call) for _ in range(WARM_CALLS))}


def _check(value: str) -> None:
    assert value == "2", value


def _open_and_close() -> None:
    from qwen_agent.tools.sandbox import open_sandbox

    with tempfile.TemporaryDirectory() as folder:
        open_sandbox(Path(folder)).close()


# ---- ipykernel, in its own Python ------------------------------------------------------------------------------------


class _Peer:
    """This script in another Python, which runs a round for every line that it reads."""

    def __init__(self, python: str) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen([python, __file__, "--serve-peer"], text=True, **pipes)  # type: ignore[call-overload]
        self.name = self._read()["name"]

    def round(self) -> Round:
        self._process.stdin.write("round\n")
        self._process.stdin.flush()
        return dict(self._read())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=30)

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the Python given with --peer has no ipykernel and jupyter_client: pip install them there")
        return dict(json.loads(line))


def serve_peer() -> None:
    import ipykernel  # type: ignore[import-not-found]
    import jupyter_client  # type: ignore[import-not-found]

    print(json.dumps({"name": f"ipykernel {ipykernel.__version__}"}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(ipykernel_round(jupyter_client)), flush=True)


def ipykernel_round(jupyter_client: Any) -> Round:
    started = time.perf_counter()
    manager = jupyter_client.KernelManager(kernel_name="python3")
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        _execute(client, "")
        result = {"start": time.perf_counter() - started}
        result |= calls(lambda: _check(_execute(client, "1+1")))
        started = time.perf_counter()
        manager.restart_kernel(now=True)
        client.wait_for_ready(timeout=60)
        _execute(client, "")
        return result | {"restart": time.perf_counter() - started}
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def _execute(client: Any, code: str) -> str:
    value: list[str] = []

    def collect(message: dict[str, Any]) -> None:
        if message["msg_type"] == "execute_result":
            value.append(message["content"]["data"]["text/plain"])

    client.execute_interactive(code, output_hook=collect, timeout=60)
    return "".join(value)


# ---- leaks and report ------------------------------------------------------------------------------------------------


def cycle(count: int) -> None:
    from qwen_agent.tools.code_interpreter import code_interpreter

    def once() -> None:
        tool = code_interpreter()
        result = tool.invoke({"code": "open('made.txt', 'w').write('x'); 6 * 7"})
        assert result.ok and result.content.startswith("42"), result
        del tool
        gc.collect()

    once()  # what is made once for the process is no leak
    before = belongings()
    started = time.perf_counter()
    for _ in range(count):
        once()
    seconds = time.perf_counter() - started
    after = belongings()
    print(
        f"\n{count} interpreters started, called and dropped in {seconds:.1f} s ({seconds / count * 1000:.0f} ms each)"
    )
    for name, number in before.items():
        print(f"  {name:18} {number:4} before, {after[name]:4} after")
    if before != after:
        raise SystemExit("something was left behind")


def belongings() -> dict[str, int]:
    """What this process has, counted."""
    deadline = time.monotonic() + 5
    while (children := _children()) and time.monotonic() < deadline:
        time.sleep(0.05)  # until the dead have been waited for
    return {
        "child processes": len(children),
        "open files": len(list(Path("/proc/self/fd").iterdir())),
        "threads": threading.active_count(),
        "temporary folders": len(list(Path(tempfile.gettempdir()).glob("qwen-agent-*"))),
    }


def _children() -> list[str]:
    """The processes whose parent is this one, the dead that nobody has waited for among them."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            parent = entry.read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid():
                found.append(entry.parent.name)
    return found


def report(found: dict[str, list[Round]], probe: float, rounds: int) -> None:
    print(f"{platform.system()} {platform.release()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(
        f"medians of {rounds} rounds, ms; the first jail, built once a process to see that it works: {probe * 1000:.0f}"
    )
    print(f"\n{'':22}" + "".join(f"{row:>12}" for row in ROWS))
    for name, results in found.items():
        medians = [statistics.median(result[row] for result in results) * 1000 for row in ROWS]
        print(f"{name:22}" + "".join(f"{value:12.2f}" for value in medians))


if __name__ == "__main__":
    main()
