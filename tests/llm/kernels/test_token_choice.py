"""The choice on the device against float64 and against the host's sampler."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from qwen_agent.llm import sampling
from qwen_agent.llm.kernels import token_choice
from qwen_agent.llm.kernels.token_choice import Rules, argmax, new_scratch, sample

CUDA = torch.cuda.is_available()
SIZES = [(64, 61), (2500, 2401)] + ([(300, 290), (151936, 151669), (152064, 151643)] if CUDA else [])


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    if not CUDA:
        monkeypatch.setattr(token_choice, "_PROGRAMS", 3)  # idle ones are not free in the interpreter


def rules(
    device: torch.device,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    penalty: float = 1.0,
    allowed: Tensor | None = None,
    seen: Tensor | None = None,
) -> Rules:
    return Rules(torch.tensor([temperature, top_k, top_p, penalty], device=device), allowed, seen)


def bitmask(flags: Tensor) -> Tensor:
    """bool [V] -> int32 words, whose bytes are those of the project's bitmask."""
    padded = torch.nn.functional.pad(flags.cpu().to(torch.int64), (0, -len(flags) % 32)).view(-1, 32)
    words = (padded << torch.arange(32)).sum(dim=1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32).to(flags.device)


def chosen_by_argmax(logits: Tensor, rule: Rules, vocabulary: int) -> int:
    token = torch.full((1,), -1, dtype=torch.int64, device=logits.device)
    argmax(logits, rule, new_scratch(vocabulary, logits.device), token)
    return int(token)


def drawn(logits: Tensor, rule: Rules, uniform: float, vocabulary: int) -> tuple[int, Tensor]:
    """The token, and the flags of those that were kept."""
    token = torch.full((1,), -1, dtype=torch.int64, device=logits.device)
    scratch = poisoned(vocabulary, logits.device)
    sample(logits, rule, torch.tensor([uniform], device=logits.device), scratch, token)
    return int(token), token_choice.kept(scratch).cpu()


def poisoned(vocabulary: int, device: torch.device) -> token_choice.Scratch:
    scratch = new_scratch(vocabulary, device)
    for name in token_choice.Scratch.__slots__:
        buffer = getattr(scratch, name)
        if isinstance(buffer, Tensor):
            buffer.fill_(torch.nan if buffer.is_floating_point() else -1)
    return scratch


def check(logits: Tensor, rule: Rules, uniform: float, vocabulary: int) -> None:
    """The draw is the inverse of the distribution at ``uniform``, up to float32's error in it."""
    probabilities = token_choice.reference_probabilities(logits, rule, vocabulary)
    token, _ = drawn(logits, rule, uniform, vocabulary)
    assert 0 <= token < vocabulary
    assert probabilities[token] > 0
    reached = probabilities.cumsum(dim=0)
    error = 1e-5
    assert reached[token] - probabilities[token] - error <= uniform <= reached[token] + error


@pytest.mark.parametrize(("size", "vocabulary"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_argmax_is_the_largest(size: int, vocabulary: int, dtype: torch.dtype, device: torch.device) -> None:
    logits = torch.randn(size, device=device).to(dtype)
    logits[vocabulary:] = 1e4
    assert chosen_by_argmax(logits, rules(device), vocabulary) == int(
        (logits[:vocabulary] == logits[:vocabulary].max()).nonzero()[0]
    )


@pytest.mark.parametrize("places", [(3, 9), (1023, 1024), (0, 2400), (1500, 2047, 2048)])
def test_argmax_takes_the_lowest_of_equals(places: tuple[int, ...], device: torch.device) -> None:
    logits = torch.randn(2500, device=device)
    logits[list(places)] = 50.0
    assert chosen_by_argmax(logits, rules(device), 2401) == places[0]


def test_argmax_obeys_mask_and_penalty_and_marks_what_it_chose(device: torch.device) -> None:
    logits = torch.tensor([5.0, 4.0, 3.0, -1.0, 2.0] + [0.0] * 40, device=device)
    flags = torch.ones(45, dtype=torch.bool, device=device)
    flags[1] = False
    seen = torch.zeros(45, dtype=torch.uint8, device=device)
    rule = rules(device, penalty=2.0, allowed=bitmask(flags), seen=seen)
    assert [chosen_by_argmax(logits, rule, 45) for _ in range(4)] == [0, 2, 0, 0]
    assert seen.nonzero().flatten().tolist() == [0, 2]
    assert token_choice.reference_argmax(logits, rule, 45) == 0


def test_penalty_is_that_of_the_host(device: torch.device) -> None:
    logits = torch.randn(100, device=device) * 3
    ids = [3, 50, 7, 3]
    seen = torch.zeros(100, dtype=torch.uint8, device=device)
    seen[ids] = 1
    scratch = new_scratch(90, device)
    token = torch.zeros(1, dtype=torch.int64, device=device)
    sample(logits, rules(device, 1.0, penalty=1.3, seen=seen), torch.zeros(1, device=device), scratch, token)
    torch.testing.assert_close(scratch.logits[:90], sampling.penalize_repetition(logits[:90], ids, 1.3))
    assert seen[int(token)] == 1


def test_the_mask_has_the_bytes_of_the_host(device: torch.device) -> None:
    logits = torch.randn(100, device=device)
    flags = torch.rand(100, device=device) < 0.5
    flags[31] = True  # the sign of a word
    words = bitmask(flags)
    scratch = new_scratch(100, device)
    token = torch.zeros(1, dtype=torch.int64, device=device)
    sample(logits, rules(device, allowed=words), torch.zeros(1, device=device), scratch, token)
    host = sampling.keep_only(logits, words.cpu().numpy().tobytes())
    assert torch.equal(scratch.logits[:100], host)


@pytest.mark.parametrize("place", [0, 31, 32, 1024, 2400])
def test_a_mask_with_one_id_leaves_no_choice(place: int, device: torch.device) -> None:
    logits = torch.randn(2500, device=device) * 5
    flags = torch.zeros(2500, dtype=torch.bool, device=device)
    flags[place] = True
    for rule in (rules(device, allowed=bitmask(flags)), rules(device, 0.7, 20, 0.8, allowed=bitmask(flags))):
        assert drawn(logits, rule, 0.999, 2401)[0] == place
        assert chosen_by_argmax(logits, rule, 2401) == place


@pytest.mark.parametrize("bad", [torch.nan, -torch.inf])
def test_impossible_logits_are_not_chosen(bad: float, device: torch.device) -> None:
    logits = torch.full((1300,), bad, device=device)
    logits[1200:] = 9.0  # padding
    assert chosen_by_argmax(logits, rules(device), 1200) == 0
    assert drawn(logits, rules(device, 0.7, 5, 0.9), 0.5, 1200)[0] == 0
    logits[1100] = -3.0
    assert chosen_by_argmax(logits, rules(device), 1200) == 1100
    assert drawn(logits, rules(device, 0.7, 5, 0.9), 0.5, 1200)[0] == 1100


def test_an_infinite_logit_takes_all(device: torch.device) -> None:
    logits = torch.randn(64, device=device)
    logits[9] = torch.inf
    assert chosen_by_argmax(logits, rules(device), 64) == 9
    assert drawn(logits, rules(device, top_p=0.9), 0.7, 64)[0] == 9


SETTINGS = [
    (1.0, 0, 1.0),
    (0.7, 0, 0.9),
    (1.5, 0, 0.99),
    (0.6, 20, 0.95),
    (1.0, 1, 1.0),
    (1.0, 5, 1.0),
    (1.0, 0, 1e-6),
    (100.0, 50, 0.5),
    (2.0, 100000, 0.8),
    (0.05, 30, 0.999),
]


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), SETTINGS)
@pytest.mark.parametrize(("size", "vocabulary"), SIZES)
def test_draws_invert_the_distribution(
    size: int, vocabulary: int, temperature: float, top_k: int, top_p: float, device: torch.device
) -> None:
    logits = torch.randn(size, device=device) * 3
    logits[vocabulary:] = 1e4
    for uniform in (0.0, float(torch.rand(1)), 1 - 2**-24) if CUDA or size < 100 else (float(torch.rand(1)),):
        check(logits, rules(device, temperature, top_k, top_p), uniform, vocabulary)


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), SETTINGS)
@pytest.mark.parametrize(("size", "vocabulary"), SIZES)
def test_the_host_keeps_the_same_ids(
    size: int, vocabulary: int, temperature: float, top_k: int, top_p: float, device: torch.device
) -> None:
    logits = torch.randn(size, device=device) * 3
    _, got = drawn(logits, rules(device, temperature, top_k, top_p), 0.5, vocabulary)
    scaled = logits[:vocabulary] / temperature
    host = sampling.keep_top_k(scaled, top_k) if top_k else scaled
    ordered, order = torch.softmax(host.double(), dim=0).cpu().sort(descending=True)
    host = sampling.keep_top_p(host, top_p) if top_p < 1 else host
    before = torch.zeros_like(ordered)
    before[order] = ordered.cumsum(dim=0) - ordered
    # Where float32 cannot tell on which side of top_p a token is, or where it has no mass, either is right.
    near = (before - top_p).abs() < (1e-4 if vocabulary > 10000 else 1e-6)
    doubtful = (near & (top_p < 1)) | ((scaled.max() - scaled).cpu() > 29.9)
    assert torch.equal(got | doubtful, host.cpu().isfinite() | doubtful)


@pytest.mark.parametrize("top_k", [0, 3])
@pytest.mark.parametrize("top_p", [1.0, 0.5, 0.013])
def test_equal_logits_are_kept_from_the_lowest_id(top_k: int, top_p: float, device: torch.device) -> None:
    logits = torch.full((1500,), 2.5, device=device)
    _, got = drawn(logits, rules(device, 1.0, top_k, top_p), 0.5, 1301)  # top-k keeps all that tie with the k-th
    assert got.nonzero().flatten().tolist() == list(range(math.ceil(top_p * 1301)))
    for uniform in (0.0, 0.37, 0.9999):
        check(logits, rules(device, 1.0, top_k, top_p), uniform, 1301)


@pytest.mark.parametrize("top_k", [0, 2, 150])
def test_ties_at_the_threshold(top_k: int, device: torch.device) -> None:
    logits = torch.full((300,), -1.0, device=device)
    logits[torch.randperm(300)[:100]] = 1.0
    logits[torch.randperm(300)[:2]] = 2.0
    rule = rules(device, 0.9, top_k, 0.5)
    _, got = drawn(logits, rule, 0.5, 300)
    assert torch.equal(got, token_choice.reference_probabilities(logits, rule, 300) > 0)
    check(logits, rule, 0.77, 300)


def test_a_dominating_logit_is_all_there_is(device: torch.device) -> None:
    logits = torch.randn(2500, device=device)
    logits[1777] = 80.0
    for rule in (rules(device), rules(device, top_p=0.9), rules(device, top_k=40), rules(device, 0.5, 20, 0.8)):
        assert drawn(logits, rule, 0.9999, 2401)[0] == 1777


def test_coarse_logits_with_many_ties(device: torch.device) -> None:
    logits = (torch.randn(2500, device=device) * 3).bfloat16()
    for top_k, top_p in ((0, 0.9), (40, 0.95), (0, 1.0)):
        rule = rules(device, 1.2, top_k, top_p)
        check(logits, rule, float(torch.rand(1)), 2401)
        _, got = drawn(logits, rule, 0.5, 2401)
        wanted = token_choice.reference_probabilities(logits, rule, 2401) > 0
        assert (got != wanted).sum() <= 1


def test_frequencies_are_the_probabilities(device: torch.device) -> None:
    vocabulary, draws = (1000, 4096) if CUDA else (12, 16)
    logits = torch.randn(vocabulary, device=device) * 2
    rule = rules(device, 0.9, vocabulary // 2, 0.95)
    scratch, token = new_scratch(vocabulary, device), torch.zeros(1, dtype=torch.int64, device=device)
    counts = torch.zeros(vocabulary, dtype=torch.float64)
    for i in range(draws):
        sample(logits, rule, torch.tensor([(i + 0.5) / draws], device=device), scratch, token)
        counts[int(token)] += 1
    probabilities = token_choice.reference_probabilities(logits, rule, vocabulary)
    assert (counts / draws - probabilities).abs().max() <= 1.001 / draws
    assert counts[probabilities == 0].sum() == 0


def test_random_rules_together(device: torch.device) -> None:
    for _ in range(200 if CUDA else 6):
        size = int(torch.randint(2, 400, (1,)))
        vocabulary = int(torch.randint(1, size + 1, (1,)))
        logits = torch.randn(size, device=device) * float(torch.rand(1) * 8)
        logits[torch.rand(size, device=device) < 0.1] = -torch.inf
        flags = torch.rand(size, device=device) < 0.7
        flags[0] = True
        logits[0] = 0.0
        seen = (torch.rand(size, device=device) < 0.2).to(torch.uint8)
        top_k = int(torch.randint(0, 60, (1,)))
        top_p = float(torch.rand(1).clamp(min=0.01))
        rule = rules(device, float(torch.rand(1)) + 0.3, top_k, top_p, 1.2, bitmask(flags), seen)
        check(logits, Rules(rule.parameters, rule.allowed, seen.clone()), float(torch.rand(1)), vocabulary)


def test_scratch_may_be_used_again(device: torch.device) -> None:
    scratch, token = new_scratch(500, device), torch.zeros(1, dtype=torch.int64, device=device)
    logits = torch.randn(500, device=device) * 3
    tokens = []
    for top_k in (0, 40, 0):
        other = torch.randn(500, device=device)
        sample(other, rules(device), torch.tensor([0.1], device=device), scratch, token)
        sample(logits, rules(device, 1.0, top_k, 0.9), torch.tensor([0.6], device=device), scratch, token)
        tokens.append(int(token))
    assert tokens[0] == tokens[2]


@pytest.mark.skipif(not CUDA, reason="graphs and programmatic launches need a GPU")
@pytest.mark.parametrize("pdl", [False, True])
def test_a_graph_reads_what_changes(pdl: bool, device: torch.device) -> None:
    logits, uniform = torch.randn(151936, device=device) * 3, torch.rand(1, device=device)
    rule = rules(device, 0.7, 20, 0.8)
    scratch, token = new_scratch(151669, device), torch.zeros(1, dtype=torch.int64, device=device)
    greedy = torch.zeros_like(token)

    def step() -> None:
        sample(logits, rule, uniform, scratch, token, pdl=pdl)
        argmax(logits, rule, scratch, greedy, pdl=pdl)

    step()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        step()
    for _ in range(20):
        logits.normal_().mul_(3)
        uniform.uniform_()
        rule.parameters.copy_(torch.tensor([0.5 + float(torch.rand(1)), 50, 0.9, 1.0]))
        graph.replay()
        expected = torch.zeros_like(token)
        sample(logits, rule, uniform, new_scratch(151669, device), expected)
        assert int(token) == int(expected)
        assert int(greedy) == int(logits[:151669].argmax())


def test_wrong_arguments_are_named() -> None:
    device = torch.device("cpu")
    scratch, token = new_scratch(64, device), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="logits"):
        argmax(torch.zeros(63), rules(device), scratch, token)
    with pytest.raises(ValueError, match="token"):
        argmax(torch.zeros(64), rules(device), scratch, token.int())
    with pytest.raises(ValueError, match="parameters"):
        argmax(torch.zeros(64), Rules(torch.zeros(3)), scratch, token)
    with pytest.raises(ValueError, match="allowed"):
        argmax(torch.zeros(64), rules(device, allowed=torch.zeros(1, dtype=torch.int32)), scratch, token)
    with pytest.raises(ValueError, match="seen"):
        argmax(torch.zeros(64), rules(device, seen=torch.zeros(64)), scratch, token)
    with pytest.raises(ValueError, match="at most"):
        new_scratch(2**18 + 1, device)
