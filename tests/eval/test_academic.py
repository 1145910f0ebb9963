"""The academic sets: prompts, scores, averages, parts of a run, all on rows of our own."""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import socket
from collections.abc import Callable, Sequence
from importlib.resources import files as package_files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("lm_eval")

import academic
import academic_report
from academic_sets import files, gsm8k, multiple_choice, wmt22
from lm_eval.api.model import LM
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from qwen_agent.errors import InputError, QwenAgentError

QUESTIONS = {"anatomy": 3, "abstract_algebra": 2}


def question(subject: str, number: int, answer: str = "B") -> dict[str, str]:
    options = {letter: f"{letter.lower()}{number}" for letter in "ABCD"}
    return {"subject": subject, "question": f"{subject} {number}?", **options, "answer": answer}


def lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two subjects of MMLU and C-Eval with five examples each, and three problems of GSM8K."""
    folder = tmp_path / "data"
    for name, split, subjects in (
        ("mmlu", "test", QUESTIONS),
        ("ceval", "val", {"law": 1, "logic": 2}),
    ):
        lines(folder / name / "dev.jsonl.gz", [question(s, n, "C") for s in subjects for n in range(90, 96)])
        lines(folder / name / f"{split}.jsonl", [question(s, n) for s, count in subjects.items() for n in range(count)])
    problems = [("1 + 1?", "One and one.\n#### 2"), ("10 * 120?", "Ten.\n#### 1,200"), ("1 - 4?", "Less.\n#### -3")]
    lines(folder / "gsm8k" / "test.jsonl", [{"question": q, "answer": a} for q, a in problems])
    return folder


# ---- prompts and rows


def test_the_prompt_of_mmlu_is_the_originals(data: Path) -> None:
    first = multiple_choice.mmlu(str(data))["test"][0]
    shots = "".join(
        f"Question: abstract_algebra {n}?\nA. a{n}\nB. b{n}\nC. c{n}\nD. d{n}\nAnswer: C\n\n" for n in range(90, 95)
    )
    opening = "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
    asked = "Question: abstract_algebra 0?\nA. a0\nB. b0\nC. c0\nD. d0\nAnswer:"
    assert first == {
        "id": "abstract_algebra/0",
        "subject": "abstract_algebra",
        "prompt": opening + shots + asked,
        "answer": "B",
    }


def test_the_prompt_of_ceval_is_the_originals(data: Path) -> None:
    first = multiple_choice.ceval(str(data))["test"][0]
    assert first["prompt"].startswith("问题：law 90?\nA. a90\nB. b90\nC. c90\nD. d90\n答案：C\n\n问题：law 91?")
    assert first["prompt"].endswith("答案：C\n\n问题：law 0?\nA. a0\nB. b0\nC. c0\nD. d0\n答案：")
    assert first["prompt"].count("问题：") == 6


def test_published_csv_files_are_read_too(data: Path, tmp_path: Path) -> None:
    for split in ("dev", "test"):
        (tmp_path / "csv" / "mmlu" / split).mkdir(parents=True)
        rows = files.read_exam(data / "mmlu", split, header=False)
        for subject in QUESTIONS:
            with (tmp_path / "csv" / "mmlu" / split / f"{subject}_{split}.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerows(list(row.values())[1:] for row in rows if row["subject"] == subject)
    assert (
        multiple_choice.mmlu(str(tmp_path / "csv"))["test"].to_list()
        == multiple_choice.mmlu(str(data))["test"].to_list()
    )


def test_an_option_that_pandas_takes_for_missing_stays(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "law_val.csv").write_text("id,question,A,B,C,D,answer,explanation\n0,q,None,NA,c,d,A,why\n")
    (row,) = files.read_exam(tmp_path, "val", header=True)
    assert (row["subject"], row["A"], row["B"], row["answer"]) == ("law", "None", "NA", "A")


def test_parts_are_disjoint_and_complete(data: Path) -> None:
    whole = {row["id"] for row in multiple_choice.mmlu(str(data))["test"]}
    parts = [[row["id"] for row in multiple_choice.mmlu(str(data), shard=f"{i}/3")["test"]] for i in (1, 2, 3)]
    assert sorted(id_ for part in parts for id_ in part) == sorted(whole) and len(whole) == 5
    limited = multiple_choice.mmlu(str(data), limit=1)["test"]
    assert [row["id"] for row in limited] == ["abstract_algebra/0", "anatomy/0"]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda data: multiple_choice.mmlu(str(data), shard="3/2"), "3/2"),
        (lambda data: multiple_choice.mmlu(str(data), limit=0), "limit 0"),
        (lambda data: multiple_choice.mmlu(str(data), shard="9/9"), "fewer shards"),
        (lambda data: multiple_choice.cmmlu(str(data)), "dev.jsonl"),
        (lambda data: gsm8k.few_shot(str(data), shots=str(data / "none.txt")), "none.txt"),
    ],
)
def test_what_cannot_be_asked_is_refused(data: Path, ask: Callable[[Path], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ask(data)


def test_rows_of_another_set_are_refused(data: Path) -> None:
    lines(data / "cmmlu" / "dev.jsonl", [question("astrology", 1)])
    lines(data / "cmmlu" / "test.jsonl", [question("astrology", 1)])
    with pytest.raises(InputError, match="astrology"):
        multiple_choice.cmmlu(str(data))
    lines(data / "cmmlu" / "test.jsonl", [{"subject": "anatomy", "question": "?", "answer": "E"}])
    with pytest.raises(InputError, match="A to D"):
        multiple_choice.cmmlu(str(data))


@pytest.mark.parametrize(("name", "count"), [("mmlu", 57), ("ceval", 52), ("cmmlu", 67)])
def test_every_subject_is_in_a_group(name: str, count: int) -> None:
    assert len(multiple_choice.subjects(name)) == count


def test_the_examples_of_gsm8k(data: Path) -> None:
    prompt = gsm8k.few_shot(str(data))["test"][0]["prompt"]
    assert (
        prompt.startswith("Question: There are 15 trees in the grove.")
        and prompt.count("\nLet's think step by step\n") == 9
    )
    assert prompt.endswith("The answer is 8.\n\nQuestion: 1 + 1?\nLet's think step by step\n")
    (data / "shots.txt").write_text("Question: 0?\nLet's think step by step\nThe answer is 0\n")
    given = gsm8k.few_shot(str(data), shots=str(data / "shots.txt"))["test"][0]["prompt"]
    assert (
        given
        == "Question: 0?\nLet's think step by step\nThe answer is 0\n\nQuestion: 1 + 1?\nLet's think step by step\n"
    )


# ---- scores


@pytest.mark.parametrize(
    ("reply", "final", "base", "august", "december"),
    [
        ("The answer is 18", "18", True, True, True),
        ("The answer is 18.", "18", True, True, True),
        ("18 dollars for 3 days", "18", False, False, False),  # the last number counts
        ("so $18.00", "18", False, False, True),  # digits without a point: the last run is 00
        ("so 0018", "18", False, False, False),  # no number in Python
        ("1,200", "1,200", False, True, True),  # 200 is not 1200; 200 is the solution's last run too
        ("1200", "1,200", True, False, True),
        ("-3", "-3", False, True, True),  # runs have no sign
        ("+3.00005", "3", False, False, True),  # within 1e-4; the last run is 00005
        ("I do not know", "3", False, False, False),
        ("", "3", False, False, False),
        ("it is ５", "5", False, False, False),
    ],
)
def test_the_rules_of_gsm8k(reply: str, final: str, base: bool, august: bool, december: bool) -> None:
    doc = {"answer": f"Because.\n#### {final}"}
    assert gsm8k.score(doc, [reply]) == {"base": base, "chat-2023-08": august, "chat-2023-12": december}


def test_the_model_text_is_never_run() -> None:
    assert gsm8k.score({"answer": "#### 4"}, ["__import__('os').getpid() 2+2"])["chat-2023-12"] == 0.0


def test_averages() -> None:
    answered = [("a", 1.0), ("b", 1.0), ("b", 0.0), ("b", 0.0)]
    assert multiple_choice.micro(answered) == 0.5
    assert multiple_choice.macro(answered) == pytest.approx((1 + 1 / 3) / 2)
    score = academic_report._macro("all", [*answered, ("a", 1.0)])
    # the variance of b's mean is 1/3 * 2/3 / 2, that of a's is 0; of the mean over both a quarter of the sum
    half = 1.96 * (1 / 9 / 4) ** 0.5
    assert (score.value, score.low, score.high) == pytest.approx((200 / 3, 200 / 3 - 100 * half, 100 * (2 / 3 + half)))


def test_equal_letters_go_to_the_first() -> None:
    assert multiple_choice.choice([(-2.0, False), (-1.0, False), (-1.0, True), (-3.0, False)]) == "B"


def test_bleu() -> None:
    pytest.importorskip("sacrebleu")
    assert wmt22.bleu([("今天天气很好。", "今天天气很好。")]) == pytest.approx(100)
    value, half = wmt22.bleu_interval([("今天天气很好。", "今天天气很好。"), ("不知道", "他在家里看书。")] * 4, 50)
    assert 0 < value < 100 and half > 0


def test_wmt22_shows_the_first_segments_and_scores_the_others(tmp_path: Path) -> None:
    source, reference = tmp_path / "en", tmp_path / "zh"
    source.write_text("".join(f"sentence {n}\n" for n in range(7)))
    reference.write_text("".join(f"句子 {n}\n" for n in range(7)))
    rows = wmt22.english_to_chinese(str(source), str(reference))["test"]
    assert [row["answer"] for row in rows] == ["句子 5", "句子 6"]
    assert rows[0]["prompt"].count("Chinese: 句子") == 5 and rows[0]["prompt"].endswith("English: sentence 5\nChinese:")
    reference.write_text("句子 0\n")
    with pytest.raises(InputError, match="7 lines"):
        wmt22.english_to_chinese(str(source), str(reference))


# ---- beside the harness's own tasks


def shipped(name: str, rows: Sequence[dict[str, Any]]) -> ConfigurableTask:
    """A task as lm-evaluation-harness ships it, on local rows."""
    config = load_yaml(Path(str(package_files("lm_eval"))) / "tasks" / name)
    config.pop("dataset_path", None)
    config.pop("tag", None)
    splits = {key: files.dataset(rows)["test"] for key in ("train", "dev", "val", "test")}
    return ConfigurableTask(
        config=config | {"custom_dataset": lambda **_: splits, "dataset_kwargs": {}, "metadata": {}}
    )


@pytest.mark.parametrize(
    "name", ["mmlu/default/mmlu_anatomy.yaml", "cmmlu/cmmlu_anatomy.yaml", "ceval/ceval-valid_law.yaml"]
)
def test_letters_agree_with_the_harness(name: str) -> None:
    rows = []
    for number, letter in enumerate("ABCD" * 8):
        row: dict[str, Any] = dict(question("anatomy", number, letter))
        row |= {"Question": row["question"], "Answer": letter}
        row["choices"] = [row[x] for x in "ABCD"]
        rows.append(row | ({"answer": "ABCD".index(letter)} if name.startswith("mmlu") else {}))
    task = shipped(name, rows)
    for number, row in enumerate(rows):
        likelihoods = [(-float((number * 7 + 3 * i) % 5), False) for i in range(4)]  # with ties
        theirs = task.process_results(row, likelihoods)["acc"]
        assert theirs == float("ABCD"[number % 4] == multiple_choice.choice(likelihoods))


def test_the_number_rule_agrees_with_the_harness() -> None:
    """On plain replies; where ours accepts more (18.00, within 1e-4), gsm8k's flexible-extract compares strings."""
    task = shipped("gsm8k/gsm8k.yaml", [{"question": "?", "answer": "#### 18"}])
    extract = next(one for one in task._filters if one.name == "flexible-extract")
    for reply, same in (
        ("It is 18", True),
        ("18 for 3", True),
        ("$1,018", True),
        ("-18", True),
        ("none", True),
        ("18.00", False),
    ):
        instance = SimpleNamespace(doc={"question": "?", "answer": "#### 18"}, resps=[reply], filtered_resps={})
        extract.apply([instance])
        theirs = task.process_results(instance.doc, [instance.filtered_resps["flexible-extract"]])["exact_match"]
        assert (theirs == gsm8k.score(instance.doc, [reply])["chat-2023-12"]) == same


# ---- runs


class Knowing(LM):  # type: ignore[misc]
    """Knows every answer; after ``patience`` answers it is interrupted."""

    def __init__(self, answers: dict[str, str], patience: int = 10**9) -> None:
        super().__init__()
        self.answers, self.patience = answers, patience
        self.asked: list[str] = []

    def _answer(self, kind: str, request: Any, answer: Any) -> Any:
        if len(self.asked) >= self.patience:
            raise KeyboardInterrupt
        self.asked.append(request.args[0])
        self.cache_hook.add_partial(kind, request.args, answer)
        return answer

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        right = [request.args[1].strip() == self.answers[request.args[0]] for request in requests]
        return [
            self._answer("loglikelihood", one, (0.0 if yes else -1.0, yes))
            for one, yes in zip(requests, right, strict=True)
        ]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        return [self._answer("generate_until", request, self.answers[request.args[0]]) for request in requests]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        raise NotImplementedError


def models(model: Knowing, *, empty_is_error: bool = False) -> Any:
    return SimpleNamespace(get=lambda kind: model, identity={"name": "knowing"}, empty_is_error=empty_is_error)


def options(data: Path, out: Path, *, limit: int | None = None, shard: str = "1/1") -> argparse.Namespace:
    out.mkdir(exist_ok=True)
    return argparse.Namespace(data=data, out=out, limit=limit, shard=shard, max_length=None, gsm8k_shots=None)


def answers_of(data: Path) -> dict[str, str]:
    asked = [multiple_choice.mmlu(str(data)), multiple_choice.ceval(str(data)), gsm8k.few_shot(str(data))]
    return {row["prompt"]: row["answer"] for split in asked for row in split["test"]}


def ask(name: str, model: Knowing, args: argparse.Namespace, **more: Any) -> dict[str, Any]:
    return academic._ask(name, models(model, **more), academic._options(name, args), args)


def test_an_oracle_is_right_everywhere_and_nothing_is_downloaded(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network is not needed")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    args = options(data, tmp_path / "out")
    for name in ("mmlu", "ceval", "gsm8k"):
        academic._write(args.out / f"{name}.json", ask(name, Knowing(answers_of(data)), args))
    report = academic_report.summary(academic_report.read_parts([args.out]))
    assert [(name, part["n"], part["scores"][0]["value"]) for name, part in report.items()] == [
        ("mmlu", 5, 100.0),
        ("ceval", 3, 100.0),
        ("gsm8k", 3, pytest.approx(100 / 3)),  # "1,200" and "-3" cannot be said by the rule base
    ]
    assert [(score["name"], score["n"]) for score in report["mmlu"]["scores"]] == [("all", 5), ("stem", 5)]
    assert report["gsm8k"]["scores"][1]["value"] == 100.0
    assert set(report["mmlu"]["data"]) == {"dev.jsonl.gz", "test.jsonl"}


def test_a_run_that_was_interrupted_asks_only_the_rest(data: Path, tmp_path: Path) -> None:
    args = options(data, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        ask("mmlu", Knowing(answers_of(data), patience=8), args)
    second = Knowing(answers_of(data))
    rows = ask("mmlu", second, args)["rows"]
    assert len(second.asked) == 20 - 8
    assert rows == ask("mmlu", Knowing(answers_of(data)), options(data, tmp_path / "other"))["rows"]


def test_parts_are_put_together_and_incomplete_ones_refused(data: Path, tmp_path: Path) -> None:
    whole = ask("mmlu", Knowing(answers_of(data)), options(data, tmp_path / "whole"))
    out = tmp_path / "parts"
    for part in ("1/2", "2/2"):
        args = options(data, out, shard=part)
        academic._write(out / f"{part[0]}.json", ask("mmlu", Knowing(answers_of(data)), args))
    merged = academic_report.read_parts([out])["mmlu"]
    assert merged["rows"] == sorted(whole["rows"], key=lambda row: row["id"])
    with pytest.raises(InputError, match="part 2 is missing"):
        academic_report.read_parts([out / "1.json"])
    partial = academic_report.read_parts([out / "1.json"], partial=True)
    assert "INCOMPLETE: 1 of 2 parts" in academic_report.markdown(partial)
    other = whole | {"shard": "2/2", "model": {"name": "another"}}
    academic._write(out / "2.json", other)
    with pytest.raises(InputError, match="model differ"):
        academic_report.read_parts([out])
    academic._write(out / "2.json", json.loads((out / "1.json").read_text()))
    with pytest.raises(InputError, match="overlap"):
        academic_report.read_parts([out])


def test_empty_replies_of_a_server_are_errors_and_asked_again(data: Path, tmp_path: Path) -> None:
    args = options(data, tmp_path / "out")
    silent = dict.fromkeys(answers_of(data), "")
    result = ask("gsm8k", Knowing(silent), args, empty_is_error=True)
    assert [row["error"] for row in result["rows"]] == [True] * 3
    with pytest.raises(SystemExit, match="3 of 3 replies are empty"):
        academic._check_errors({"gsm8k": result}, 0.02)
    assert academic_report.summary({"gsm8k": academic_report._merged("gsm8k", [result], False)})["gsm8k"]["errors"] == 3
    again = Knowing(answers_of(data))
    assert not any(row["error"] for row in ask("gsm8k", again, args, empty_is_error=True)["rows"])
    assert len(again.asked) == 3


def test_an_empty_reply_of_a_model_here_is_wrong(data: Path, tmp_path: Path) -> None:
    result = ask("gsm8k", Knowing(dict.fromkeys(answers_of(data), "")), options(data, tmp_path / "out"))
    assert [(row["error"], row["base"]) for row in result["rows"]] == [(False, 0.0)] * 3


def test_a_folder_is_for_one_model(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "gsm8k.json"
    academic._write(path, ask("gsm8k", Knowing(answers_of(data)), options(data, tmp_path / "out")))
    academic._check_model(path, {"name": "knowing"})
    with pytest.raises(InputError, match="another model"):
        academic._check_model(path, {"name": "other"})


def test_a_server_that_fails_is_named(data: Path, tmp_path: Path) -> None:
    args = options(data, tmp_path / "out")
    args.url = "http://127.0.0.1:9/v1"
    with pytest.raises(QwenAgentError, match=r"127.0.0.1:9/v1 failed .KeyError.*a rerun asks what is missing"):
        academic._answered("gsm8k", models(Knowing({})), academic._options("gsm8k", args), args)
    with pytest.raises(InputError, match="does not list any models"):
        academic.served_length("http://127.0.0.1:9/v1", "m", "")
