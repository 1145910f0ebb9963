"""CudaModel: what a runtime needs of a Model, by fused kernels and graphs."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from qwen_agent.llm.cache import KVCache
from qwen_agent.llm.cuda.graphs import Capture, Replay, graph_capture, without_graphs
from qwen_agent.llm.cuda.products import take_weights
from qwen_agent.llm.cuda.rows import BUCKETS, CAPTURED, Rows
from qwen_agent.llm.cuda.state import State
from qwen_agent.llm.cuda.step import Step
from qwen_agent.llm.kernels.fused_norm import rms_norm
from qwen_agent.llm.kernels.gemv import pick_row
from qwen_agent.llm.kernels.prefill_attention import prefill_attention_name
from qwen_agent.llm.model import Model
from qwen_agent.llm.rope import request_alpha


class CudaModel:
    """A Model's weights behind the same calls: one token by the fused step, several by the path of many rows.

    Batch 1. Calls from several threads take turns; each returns tensors of its own. ``capture`` turns a function that
    launches kernels into one that replays them; the default captures CUDA graphs.
    """

    chunk = 8192  # tokens that a runtime reads per forward pass: a fifth of a second on an H100

    def __init__(
        self,
        model: Model,
        *,
        cache_dtype: torch.dtype | None = None,
        capture: Capture | None = None,
    ) -> None:
        self.config, self.dtype = model.config, model.dtype
        self._device = model.device
        self.cache_dtype = cache_dtype or model.dtype
        on_gpu = self.device.type == "cuda"
        self.capture: Capture = capture or (graph_capture() if on_gpu else without_graphs)
        self.pdl = on_gpu and torch.cuda.get_device_capability(self.device) >= (9, 0)
        self.weights = take_weights(model)
        self.state = State(self.config, self.device)
        self.step = Step(self.config, self.weights, self.state, self.cache_dtype, self.pdl)
        self.lock = threading.RLock()
        self.kept = [self.state.numbers]  # what kernels change from run to run, besides the cache
        self._rows = Rows(self.config, self.weights, self.state, self.cache_dtype)
        self._ids = torch.zeros(CAPTURED, dtype=torch.int64, device=self.device)
        self._bucket_rows: dict[int, Tensor] = {}
        self._replays: dict[object, Replay] = {}

    @property
    def device(self) -> torch.device:
        return self._device

    def new_cache(self, prompt_length: int, capacity: int = 0) -> KVCache:
        """An empty cache for a request whose prompt has ``prompt_length`` tokens; that fixes its NTK alpha."""
        alpha = request_alpha(self.config, prompt_length)
        room = max(prompt_length, capacity)
        return KVCache(self.config, alpha=alpha, capacity=room, device=self.device, dtype=self.cache_dtype)

    @torch.inference_mode()
    def hidden(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Read ids [1, T] on top of the cache; normalised hidden states [1, T, H]."""
        with self.lock:
            return self._normalized(self._read(ids[0], cache))[None]

    @torch.inference_mode()
    def last_logits(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Logits [1, V] (float32) after the last of ids [1, T]."""
        with self.lock:
            if ids.shape[1] > 1:
                self._read(ids[0], cache)
            else:
                self._stand(cache, 1)
                self.state.token.copy_(ids[0])
                self.replay("step", self.step.run)
                cache.advance(1)
            return self.step.logits.clone()[None]

    @torch.inference_mode()
    def __call__(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Logits [1, T, V] in the model's dtype for ids [1, T] on top of the cache."""
        with self.lock:
            return self.weights.head.many(self._normalized(self._read(ids[0], cache)))[None]

    def _normalized(self, rows: Tensor) -> Tensor:
        return rms_norm(rows, self.weights.norm.weight, self.weights.norm.eps)

    def replay(self, key: object, launch: Callable[[], object]) -> None:
        """Run what ``launch`` launches; it is captured at the first call under ``key``."""
        if key not in self._replays:
            # Capturing runs it once too often: what one run leaves to the next is put back.
            before = [tensor.clone() for tensor in self.kept]
            self._replays[key] = self.capture(launch)
            for tensor, value in zip(self.kept, before, strict=True):
                tensor.copy_(value)
        self._replays[key]()

    def warm_up(self) -> None:
        """Compile and capture everything, so that no request waits for it."""
        cache = self.new_cache(BUCKETS[-1])
        for tokens in (*BUCKETS, 1):
            cache.truncate(0)
            self.last_logits(torch.zeros((1, tokens), dtype=torch.int64, device=self.device), cache)

    def kernels(self) -> dict[str, str]:
        """Which kernel serves each operation."""
        names: dict[str, set[str]] = {}
        for op, product in self.weights.products():
            names.setdefault(op, set()).add(product.kernel)
        table = {op: ", ".join(sorted(found)) for op, found in names.items()}
        cache = str(self.cache_dtype).removeprefix("torch.")
        return table | {
            "attention, one token": f"split-KV over {cache}",
            "attention, suffix": f"flash over {cache}",
            "attention, prompt": prefill_attention_name(),
            "launch": ("CUDA graph, dependent launch" if self.pdl else "CUDA graph")
            if self.device.type == "cuda"
            else "one by one",
        }

    def _read(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Read ids [T] on top of the cache: leaves the last one's logits in the step's buffer.

        Returns the residual stream [T, H], which is valid until the next call.
        """
        count = ids.shape[0]
        whole = cache if cache.length == 0 else None
        self._stand(cache, count)
        if count <= CAPTURED:
            bucket = next(b for b in BUCKETS if b >= count)
            self._ids[:count].copy_(ids)
            self.replay(bucket, lambda: self._launch_bucket(bucket))
            rows = self._bucket_rows[bucket]
        else:
            rows = self._rows.run(ids, whole)
            self._pick(rows)
        cache.advance(count)
        return rows[:count]

    def _launch_bucket(self, tokens: int) -> None:
        # The tensor that the capture makes is where every replay leaves its rows.
        self._bucket_rows[tokens] = self._rows.run(self._ids[:tokens])
        self._pick(self._bucket_rows[tokens])

    def _pick(self, rows: Tensor) -> None:
        pick_row(rows, self.state.place, self.step.hidden)
        self.step.head()

    def _stand(self, cache: KVCache, count: int) -> None:
        cache.reserve(cache.length + count)
        self.state.stand(cache, cache.length, count)
