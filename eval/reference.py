"""First steps by transformers instead of our own runtime: dequantised to bfloat16, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from answers import Answer, Question
from dense import dense_checkpoint
from tokenizers import Tokenizer
from transformers import Qwen2Config, Qwen2ForCausalLM, StaticCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from qwen_agent.llm.hub import resolve_model
from qwen_agent.types import IM_END, Control, Prompt


def ask_transformers(
    model_name: str, names: Mapping[str, Sequence[str]], questions: Sequence[Question], *, batch: int, device: str
) -> Iterator[Answer]:
    """The answers, longest prompts first. After "Action:" comes one of the question's ``names``, if any."""
    folder = resolve_model(model_name)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = _load(folder).to(device)
    encoded = [(question, _encode(tokenizer, question.prompt)) for question in questions]
    encoded.sort(key=lambda pair: len(pair[1]), reverse=True)
    for start in range(0, len(encoded), batch):
        group = encoded[start : start + batch]
        spellings = [_spellings(tokenizer, names.get(question.id, ())) for question, _ in group]
        limit = max(question.config.max_new_tokens for question, _ in group)
        stops = group[0][0].config.stop
        with torch.inference_mode():
            texts = _generate(model, tokenizer, [ids for _, ids in group], spellings, stops, limit)
        for (question, _), ids in zip(group, texts, strict=True):
            text = tokenizer.decode(ids, skip_special_tokens=False)
            yield Answer(question.id, text, "" if text.strip() else "an empty reply", len(ids) == limit, len(ids))


def _load(folder: Path) -> Any:
    described, weights = dense_checkpoint(folder, torch.bfloat16)
    ALL_ATTENTION_FUNCTIONS["sdpa"] = _attention
    model: Any = Qwen2ForCausalLM(Qwen2Config(**described))
    model.to(torch.bfloat16)
    model.load_state_dict(weights, strict=False)
    return model.eval()


def _attention(module: Any, q: Any, k: Any, v: Any, mask: Any, scaling: float, **_: Any) -> tuple[Any, None]:
    """Attention that reads each key head once for its group of query heads; transformers copies it for every one."""
    batch, heads, length, size = q.shape
    if length > 1:
        # no mask is given where no prompt of the batch is padded
        causal = mask is None
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=True)
    else:
        grouped = q.view(batch, k.shape[1], -1, size)
        out = F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask, scale=scaling)
    return out.reshape(batch, heads, length, size).transpose(1, 2), None


def _encode(tokenizer: Any, prompt: Prompt) -> list[int]:
    ids: list[int] = []
    for segment in prompt:
        if isinstance(segment, Control):
            ids.append(tokenizer.token_to_id(segment.name))
        else:
            ids += tokenizer.encode(segment.content, add_special_tokens=False).ids
    return ids


def _spellings(tokenizer: Any, names: Sequence[str]) -> list[list[int]]:
    """The token ids that may follow "Action:", one list per name, newline included."""
    newline = tokenizer.encode("\n").ids
    return [tokenizer.encode(f" {name}").ids + newline for name in names]


def _generate(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    spellings: list[list[list[int]]],
    stops: Sequence[str],
    limit: int,
) -> list[list[int]]:
    end = tokenizer.token_to_id(IM_END.name)
    action = tokenizer.encode("\nAction:").ids
    endings = [[end], *(tokenizer.encode(text).ids for text in stops)]
    width, count = max(map(len, prompts)), len(prompts)
    ids = torch.full((count, width), end)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)  # padded on the left
    lengths = torch.tensor([[len(prompt)] for prompt in prompts])
    mask = (torch.arange(width) >= width - lengths).long()
    position = (torch.arange(width) - (width - lengths)).clamp_min(0)
    ids, mask, position = (tensor.to(model.device) for tensor in (ids, mask, position))
    cache = StaticCache(config=model.config, max_cache_len=width + limit)
    texts: list[list[int]] = [[] for _ in prompts]
    done = [False] * count
    for _ in range(limit):
        out = model(input_ids=ids, attention_mask=mask, position_ids=position, past_key_values=cache, logits_to_keep=1)
        logits = out.logits[:, -1].cpu()
        for row, text in enumerate(texts):
            if not done[row]:
                text.append(_next_token(logits[row], _allowed(text, action, spellings[row])))
                done[row] = any(text[-len(stop) :] == stop for stop in endings)
        if all(done):
            break
        ids = torch.tensor([[text[-1]] for text in texts], device=model.device)
        mask = torch.cat((mask, mask.new_ones(count, 1)), dim=1)
        position = position[:, -1:] + 1
    return texts


def _allowed(text: list[int], action: list[int], spellings: list[list[int]]) -> set[int]:
    """Token ids that continue a tool's name if ``text`` is inside one; empty = anything goes."""
    for start in range(len(text), len(action) - 1, -1):
        if text[start - len(action) : start] == action:
            name = text[start:]
            return {spelling[len(name)] for spelling in spellings if spelling[: len(name)] == name != spelling}
    return set()


def _next_token(logits: Any, allowed: set[int]) -> int:
    if not allowed:
        return int(logits.argmax())
    candidates = sorted(allowed)
    return candidates[int(logits[candidates].argmax())]
