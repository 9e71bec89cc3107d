"""Tables of sentences: CSV, or JSON lines, with a row for each sentence.

    video,sentence,start,end,split
    kitchen/tuesday,a person opens the fridge,3.5,7,train

`video` is the id of a video in the feature file, or the file it was made from. `start` and `end` are in seconds;
`duration`, that of the video, is needed only where the feature file does not hold it.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from method.runtime.errors import InputError, shown, summarize
from method.runtime.files import read_text
from method.runtime.text import split_lines

Split = Literal["train", "test"]

_COLUMNS = ("video", "sentence", "start", "end", "duration", "split")
_REQUIRED = ("video", "sentence")
_SPLITS: dict[str, Split] = {"train": "train", "test": "test", "val": "test"}
_DELIMITERS = ",;\t"  # spreadsheets write semicolons where the comma is the decimal point
_CSV, _JSON_LINES = (".csv", ".tsv"), (".jsonl", ".ndjson")
_MAX_SECONDS = 1e9


@dataclass(frozen=True)
class Row:
    """A sentence about a video, as a table has it.

    line: where it begins, from 1. sentence: with single spaces. start, end: of the moment. duration: of the video.
    """

    line: int
    video: str
    sentence: str
    start: float | None
    end: float | None
    duration: float | None
    split: Split | None


def read_table(path: Path) -> list[Row]:
    """Read a table of sentences; UTF-8 with or without a byte-order mark, CSV or JSON lines by the name's suffix.

    Raises:
        InputError: for another suffix, a column that is missing or unknown, and wrong rows, with their number and the
            first of them.
    """
    read = {**dict.fromkeys(_CSV, _csv_records), **dict.fromkeys(_JSON_LINES, _json_records)}.get(path.suffix.lower())
    if read is None:
        raise InputError(f"{path}: expected a table with the suffix {', '.join((*_CSV, *_JSON_LINES))}")
    rows: list[Row] = []
    problems = []
    for line, record in read(path, read_text(path)):
        try:
            if isinstance(record, str):
                raise ValueError(record)
            rows.append(_row(line, record))
        except ValueError as error:
            problems.append(f"line {line}: {error}")
    refuse(path, problems)
    if not rows:
        raise InputError(f"{path}: no sentences, expected a row for each")
    return rows


def refuse(path: Path, problems: list[str]) -> None:
    """InputError with the number of problems and the first of them, if there are any."""
    if problems:
        count = f"{len(problems)} wrong rows: " if len(problems) > 1 else ""
        raise InputError(f"{path}: {count}{summarize(problems)}")


def _csv_records(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """First line and fields of each record, or what is wrong with it. InputError for the header."""
    header = text.lstrip("\r\n").split("\n", 1)[0]
    delimiter = max(_DELIMITERS, key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] = []
    line = 1
    try:
        for record in reader:
            if not any(field.strip() for field in record):
                pass
            elif not columns:
                columns = [name.strip().lower() for name in record]
                _check_columns(columns, f"{path}: line {line}")
            elif len(record) != len(columns):
                yield line, f"{len(record)} fields, expected {len(columns)}; is a {delimiter!r} not in quotes?"
            else:
                yield line, {name: field for name, field in zip(columns, record, strict=True) if field.strip()}
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}: line {line}: not valid CSV ({error}); is a quotation mark not closed?") from error
    if not columns:
        raise InputError(f"{path}: empty, expected a header such as {','.join(_COLUMNS)}")


def _check_columns(columns: list[str], where: str) -> None:
    expected = f"expected {' and '.join(_REQUIRED)}, optionally {', '.join(_COLUMNS[len(_REQUIRED) :])}"
    if unknown := [shown(name) for name in columns if name not in _COLUMNS]:
        raise InputError(f"{where}: unknown columns {', '.join(unknown)}, {expected}")
    if missing := [name for name in _REQUIRED if name not in columns]:
        raise InputError(f"{where}: no column {' or '.join(missing)}, {expected}")
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise InputError(f"{where}: column {twice[0]} occurs twice")


def _json_records(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """Line and object of each line, or what is wrong with it."""
    for line, content in enumerate(split_lines(text), start=1):
        if not content.strip():
            continue
        try:
            record = json.loads(content)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            yield line, f"expected a JSON object, found {shown(content)}"
        elif unknown := [shown(name) for name in record if name not in _COLUMNS]:
            yield line, f"unknown keys {', '.join(unknown)}, expected {', '.join(_COLUMNS)}"
        else:
            yield line, {name: value for name, value in record.items() if value is not None}


def _row(line: int, record: Mapping[str, Any]) -> Row:
    """The row of a record without its empty fields. ValueError that says what is wrong."""
    video, sentence = (_text(record, name) for name in _REQUIRED)
    start, end, duration = (_seconds(record, name) for name in ("start", "end", "duration"))
    if (start is None) != (end is None):
        raise ValueError(f"{'end' if end is None else 'start'} is missing, expected both start and end, or neither")
    if start is not None and end is not None and not 0 <= start < end:
        raise ValueError(f"start {start:g}, end {end:g}: expected 0 <= start < end")
    if duration == 0:
        raise ValueError("duration is 0, expected seconds")
    split = _text(record, "split").lower() if "split" in record else None
    if split is not None and split not in _SPLITS:
        raise ValueError(f"split is {shown(split)}, expected {', '.join(_SPLITS)}")
    return Row(line, video, sentence, start, end, duration, None if split is None else _SPLITS[split])


def _text(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name, "")
    if not isinstance(value, str):
        raise ValueError(f"{name} is {shown(value)}, expected text")
    text = value.strip() if name == "video" else " ".join(value.split())
    if not text:
        raise ValueError(f"{name} is empty")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} {shown(text)} is not valid Unicode") from None
    if "\0" in text:
        raise ValueError(f"{name} contains a NUL character")
    return text


def _seconds(record: Mapping[str, Any], name: str) -> float | None:
    if name not in record:
        return None
    value = record[name]
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds <= _MAX_SECONDS:
        raise ValueError(f"{name} is {shown(value)}, expected seconds")
    return seconds
