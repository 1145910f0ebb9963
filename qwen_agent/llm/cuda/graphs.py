"""CUDA graphs: a function that launches kernels over fixed buffers becomes one launch."""

from __future__ import annotations

from collections.abc import Callable

import torch

Replay = Callable[[], None]
Capture = Callable[[Callable[[], object]], Replay]


def graph_capture() -> Capture:
    """A capture whose graphs share memory: of two, only the one that was replayed last has valid intermediates."""
    pool = torch.cuda.graph_pool_handle()

    def capture(launch: Callable[[], object]) -> Replay:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            launch()  # compiles kernels and sizes libraries' workspaces, which a capture cannot
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            launch()
        return graph.replay

    return capture


def without_graphs(launch: Callable[[], object]) -> Replay:
    """Launch kernel by kernel: on the CPU, and to find a fault."""

    def replay() -> None:
        launch()

    return replay
