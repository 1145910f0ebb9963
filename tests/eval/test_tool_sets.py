"""The loaders, on files of our own in the form of each set."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest
from cases import Case, alike, plain_gold, same_json, shallow
from imagined import oracle, wrong_argument
from tool_sets import SETS, digests
from tool_sets.files import find, rows
from verdict import verdict


@pytest.fixture
def sets(data: Path) -> Path:
    return data / "tool_use"


def load(sets: Path, name: str, category: str) -> list[Case]:
    return list(SETS[name].load(sets / name, category))


def test_bfcl(sets: Path) -> None:
    cases = load(sets, "bfcl", "multiple")
    assert [case.id for case in cases] == ["m0", "m1", "m2", "m3"]
    ferry = cases[1].functions[1].parameters
    assert ferry["type"] == "object"
    assert ferry["properties"]["cargo"]["properties"]["tons"] == {"type": "number"}
    assert [case.gold.name for case in cases if case.gold] == ["weather.get", "ferry.plan"] * 2
    assert all(case.gold is None for case in load(sets, "bfcl", "irrelevance"))
    assert len(load(sets, "bfcl", "irrelevance")) == 4, "a question without any function is no question"


@pytest.mark.parametrize(
    ("arguments", "accepted", "exact"),
    [
        ({"ports": ["Moss", "Horten"], "cargo": {"kind": "van", "tons": 2.0}}, True, True),
        ({"ports": ["Moss", "Horten"], "cargo": {"kind": "van"}}, True, True),
        ({"ports": ["moss ", "HORTEN"], "cargo": {"kind": "Van", "tons": 2}}, True, False),
        ({"ports": ["Horten", "Moss"], "cargo": {"kind": "van"}}, False, False),
        ({"ports": ["Moss", "Horten"], "cargo": {"kind": "car"}}, False, False),
        ({"ports": ["Moss", "Horten"]}, False, False),
        ({"ports": ["Moss", "Horten"], "cargo": {"kind": "van"}, "open": "true"}, False, False),
        ({"ports": "Moss", "cargo": {"kind": "van"}}, False, False),
    ],
)
def test_what_bfcl_accepts(sets: Path, arguments: dict[str, object], accepted: bool, exact: bool) -> None:
    gold = load(sets, "bfcl", "multiple")[1].gold
    assert gold is not None
    assert (gold.accepts(arguments), gold.exact(arguments)) == (accepted, exact)


def test_acebench(sets: Path) -> None:
    tea, talk = load(sets, "acebench", "similar_api")
    assert tea.question == (
        "Today is Monday, May 1, 2023.\nTwo cups of green tea with milk of 3.5 percent fat, please."
    )
    assert talk.question.splitlines() == [
        "user: I would like some tea.",
        "system: Which one?",
        "user: 200 grams of oolong, to be delivered.",
    ]
    assert tea.gold is not None
    assert tea.gold.accepts({"kind": "Green", "cups": 2.0, "milk": {"fat": 3.5}})
    assert not tea.gold.accepts({"kind": "green", "cups": 2})
    for category in ("incomplete", "error_param", "irrelevant"):
        assert [case.gold for case in load(sets, "acebench", category)] == [None]
    (order,) = load(sets, "acebench", "error_param")
    assert order.functions[0].parameters["type"] == "object"


def test_toolalpaca_keeps_what_is_one_step_and_can_be_read(sets: Path) -> None:
    cases = load(sets, "toolalpaca", "real")
    assert [case.question for case in cases] == ["Which lamps are there?", "Dim the desk lamp to 20."]
    assert [function.name for function in cases[0].functions] == ["listLamps", "setLamp"]
    assert cases[0].functions[1].description == "Set a lamp."
    assert cases[0].functions[1].parameters == {
        "type": "object",
        "properties": {
            "lamp": {"description": "The name of the lamp.", "type": "string"},
            "level": {"description": "From 0 to 100.", "type": "integer"},
            "mood": {"description": "The colour.", "type": "string", "enum": ["warm", "cold"]},
            "zones": {"description": "Parts of the lamp.", "type": "array", "items": {"type": "string"}},
        },
        "required": ["lamp"],
    }
    gold = cases[1].gold
    assert gold is not None
    assert gold.accepts({"lamp": "desk", "level": 20})
    assert gold.accepts({"lamp": "desk", "level": 20, "mood": ""})
    assert not gold.accepts({"lamp": "desk"})


def test_sealtools_draws_the_same_others_each_time(sets: Path) -> None:
    (case,) = load(sets, "sealtools", "in_domain")
    (again,) = load(sets, "sealtools", "in_domain")
    assert [f.name for f in case.functions] == [f.name for f in again.functions]
    assert len(case.functions) == 5
    assert case.gold is not None
    assert case.gold.name in {function.name for function in case.functions}
    assert case.gold.example == {"harbour": "Ystad", "hours": 12}, "numbers are no strings"
    (removed,) = load(sets, "sealtools", "in_domain_removed")
    assert removed.gold is None
    assert len(removed.functions) == 5
    assert "getTide" not in {function.name for function in removed.functions}


def test_metatool(sets: Path, tmp_path: Path) -> None:
    assert SETS["metatool"].categories(sets / "metatool") == ["Task2-Subtask3"]
    knots, fog = load(sets, "metatool", "Task2-Subtask3")
    assert [function.description for function in knots.functions] == ["Shows how to tie knots.", "Mends sails."]
    assert knots.gold is not None
    assert knots.gold.name == "knots"
    assert knots.gold.example is None
    assert fog.gold is None, "the right tool is not on the list"
    (tmp_path / "Task1.json").write_text('[{"query": "q", "label": "negative"}]')
    with pytest.raises(SystemExit, match="row 1: no query with a list of tools"):
        list(SETS["metatool"].load(tmp_path, "Task1"))


def test_the_originals_files(sets: Path) -> None:
    place, note = load(sets, "qwen", "positive")
    assert place.question == "北京在哪里？"
    assert place.given.startswith("Answer the following questions")
    assert [function.name for function in place.functions] == ["地图", "notes"]
    assert place.functions[0].description == "查找地点。"
    assert place.functions[0].parameters["properties"]["城市"]["type"] == "string"
    assert note.functions[1].parameters["required"] == ["text"]
    assert place.gold is not None
    assert place.gold.accepts({"城市": "北京"})
    assert [case.gold for case in load(sets, "qwen", "negative")] == [None, None]


def test_two_versions_of_the_originals_files_do_not_mix(sets: Path, tmp_path: Path) -> None:
    for version in ("v1", "v20231206"):
        shutil.copy(sets / "qwen/exam_plugin_v1_react_positive.jsonl", tmp_path / f"{version}_react_positive.jsonl")
    with pytest.raises(SystemExit, match="a folder of its own"):
        SETS["qwen"].files(tmp_path, "positive")


@pytest.mark.parametrize("name", sorted(SETS))
def test_the_right_call_is_right_and_one_argument_too_many_is_not(sets: Path, name: str) -> None:
    folder = sets / name
    categories = [c for c in SETS[name].categories(folder) if _is_there(name, folder, c)]
    cases = [case for category in categories for case in SETS[name].load(folder, category)]
    for case in cases:
        for shown in (case, shallow(case)):
            assert verdict(shown, oracle(shown), False).outcome == "right"
            if case.gold is not None and case.gold.example is not None:
                assert verdict(shown, wrong_argument(shown), False).outcome == "extra argument"
    assert cases
    assert len(digests(name, folder, categories)) >= 1


def _is_there(name: str, folder: Path, category: str) -> bool:
    try:
        return bool(digests(name, folder, [category]))
    except SystemExit:
        return False


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".json.gz", ".jsonl.gz"])
@pytest.mark.parametrize("form", ["lines", "list"])
def test_files_of_any_ending_hold_lines_or_a_list(tmp_path: Path, ending: str, form: str) -> None:
    objects = [{"a": "ü"}, {"a": 2}]
    text = json.dumps(objects, indent=1) if form == "list" else "\n".join(map(json.dumps, objects)) + "\n\n"
    content = text.encode("utf-8-sig")
    (tmp_path / f"file{ending}").write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    assert list(rows(find(tmp_path, "file"))) == objects


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"there is no file\{.jsonl.*give --data"):
        find(tmp_path, "file")
    (tmp_path / "file.json").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(SystemExit, match=r"file\.json, line 2: no JSON"):
        list(rows(tmp_path / "file.json"))
    (tmp_path / "file.json").write_text("3\n")
    with pytest.raises(SystemExit, match="'3' is no JSON object"):
        list(rows(tmp_path / "file.json"))


def test_equality() -> None:
    assert same_json({"a": [1, 2.0]}, {"a": [1.0, 2]})
    assert not same_json(True, 1)
    assert not same_json([1], [1, 2])
    assert alike("New-York, N.Y.", "new york NY")
    assert not alike("1", 1)
    assert plain_gold("f", {"a": ""}, ["a"]).accepts({})


def test_shallow_schemas_say_type_description_and_choices() -> None:
    inside = {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "number"}}}, "description": "d"}
    chosen = {"type": "array", "items": {"enum": ["a", "b"]}}
    from cases import Function

    schema = {"type": "object", "properties": {"points": inside, "kinds": chosen}, "required": []}
    case = shallow(Case("c", "1", "q", (Function("f", "", schema),), None))
    assert case.functions[0].parameters["properties"] == {
        "points": {"description": "d", "type": "array"},
        "kinds": {"type": "array", "items": {"enum": ["a", "b"]}},
    }
