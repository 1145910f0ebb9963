"""Log-probabilities of tokens, from the logits that chose them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qwen_agent.llm.runtime import TokenLogprob
from qwen_agent.llm.tokenizer import Tokenizer

Measure = Callable[[Tensor, Sequence[int]], tuple[TokenLogprob, ...]]

_MAX_BYTES = 64 << 20  # of float32 logits held at a time


def rows_at_once(vocabulary: int) -> int:
    """How many rows of logits may be measured at a time."""
    return max(1, _MAX_BYTES // (4 * vocabulary))


def build_measure(tokenizer: Tokenizer, vocabulary: int, top: int) -> Measure:
    """A function (logits [R, V], R token ids) -> what each of them had in its row, with the ``top`` likeliest.

    Ids from ``vocabulary`` up are padding rows of the embedding: they have no probability.
    """
    names = {token_id: name.encode() for name, token_id in tokenizer.specials.items()}

    def text(token: int) -> bytes:
        try:
            return names.get(token) or tokenizer.token_bytes(token)
        except KeyError:  # a hole in the numbering
            return b""

    @torch.inference_mode()
    def measure(logits: Tensor, tokens: Sequence[int]) -> tuple[TokenLogprob, ...]:
        logs = torch.log_softmax(logits[:, :vocabulary].float(), dim=-1)
        chosen = logs.gather(1, torch.tensor(tokens, device=logs.device)[:, None])[:, 0].tolist()
        best = torch.topk(logs, min(top, vocabulary), dim=-1)
        return tuple(
            TokenLogprob(
                token, text(token), log, tuple((i, text(i), value) for i, value in zip(ids, values, strict=True))
            )
            for token, log, ids, values in zip(tokens, chosen, best.indices.tolist(), best.values.tolist(), strict=True)
        )

    return measure
