"""Reading a JSON file entry by entry gives what reading it at once gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lavislite.common.errors import DataError
from lavislite.datasets.json_stream import stream_json, text_value


def gathered(file: Path) -> Any:
    content: Any = None
    for key, n, value in stream_json(file):
        if key is None:
            content = value if n == 0 else [*content, value]
        else:
            content = content or {}
            content[key] = value if n == 0 else [*content[key], value]
    return content


@pytest.mark.parametrize(
    "content",
    [
        [],
        [[]],
        [1, [2], {"a": [3]}, None, "x", 1.5e3, True],
        {"a": [], "b": {}, "c": [{"d": [1, 2]}], "e": -5, "f": [[1]], "g": "[{,", "": None},
        "text",
        17,
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_any_content(tmp_path: Path, content: Any, indent: int | None) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content, indent=indent), "utf-8")
    assert gathered(file) == content
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes() + b"\r\n")
    assert gathered(file) == content


def test_entries_across_the_borders_of_what_is_read_at_a_time(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    content = [{"n": 10**k, "é": "ü" * k, "long": [str(k)] * (k % 7)} for k in range(1500)] * 4
    content.insert(700, {"n": 0, "é": "🐈" * 6_000_000, "long": []})  # longer than that
    file.write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    n = 0
    for n, entry in enumerate(stream_json(file)):
        assert entry.value == ([] if n == 0 else content[n - 1])
    assert n == len(content)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "b" 2}',
        '{"a": 1 "b": 2}',
        "{a: 1}",
        "[1, 2",
        "[1 2]",
        '["abc',
        "[1,]",
        '{"a": [1, 2}',
        "[1]]",
        '[\n  {"a": 1},\n  {"a": x}\n]',
        "[tru]",
        "nonsense",
    ],
)
def test_mistakes_are_located_as_by_json_itself(tmp_path: Path, text: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(text, "utf-8")
    with pytest.raises(json.JSONDecodeError) as error:
        json.loads(text)
    with pytest.raises(DataError, match=r"not valid JSON: .* \(line (\d+), column (\d+)\)") as ours:
        list(stream_json(file))
    assert f"line {error.value.lineno}, " in str(ours.value)
    column = int(str(ours.value).split("column ")[1].split(")")[0])
    assert abs(column - error.value.colno) <= 1  # newer versions of json point at the comma


def test_a_mistake_far_into_the_file_is_located(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    rows = [json.dumps({"n": n, "text": "x" * 1000}) for n in range(10_000)]
    file.write_text("[\n" + ",\n".join([*rows, '{"n": }', *rows]) + "\n]", "utf-8")
    with pytest.raises(DataError, match=r"Expecting value \(line 10002, column 7\)\.$"):
        list(stream_json(file))


def test_a_text_is_found_wherever_it_is(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    content = {"questions": ['not "data_subtype": "x"'], "data_subtype": "val2014"}
    for indent in (None, 1):
        file.write_text(json.dumps(content, indent=indent), "utf-8")
        assert text_value(file, "data_subtype") == "val2014"
        assert text_value(file, "data") is None
    file.write_text("", "utf-8")
    assert text_value(file, "data_subtype") is None
