"""Tables of sentences: what is read, and what is wrong with a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from method.runtime.errors import InputError
from utils.captions.table import Row, read_table

CSV = 'video,sentence,start,end,split\r\na/b,"A person, who\r\n""waits""",0,2.5,train\r\n\r\nc,Zoë sits.,,,VAL\r\n'
ROWS = [
    Row(2, "a/b", 'A person, who "waits"', 0.0, 2.5, None, "train"),
    Row(5, "c", "Zoë sits.", None, None, None, "test"),
]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
def test_csv(tmp_path: Path, encoding: str, delimiter: str) -> None:
    path = tmp_path / "table.CSV"
    text = CSV if delimiter == "," else CSV.replace(", who", "; who").replace(",", delimiter).replace("; who", ", who")
    path.write_bytes(text.encode(encoding))
    assert read_table(path) == ROWS


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "table.jsonl"
    records = [
        {"video": "a/b", "sentence": 'A person,  who\n"waits"', "start": 0, "end": "2.5", "split": "train"},
        {"sentence": "Zoë sits.", "video": " c ", "start": None, "split": "test", "duration": 9},
    ]
    path.write_text("\ufeff" + "\n\n".join(json.dumps(record) for record in records))
    assert read_table(path) == [
        Row(1, "a/b", 'A person, who "waits"', 0.0, 2.5, None, "train"),
        Row(3, "c", "Zoë sits.", None, None, 9.0, "test"),
    ]


@pytest.mark.parametrize(("text", "message"), [
    ("", "empty, expected a header such as video,sentence"),
    ("video,sentence\n", "no sentences, expected a row for each"),
    ("video,text,when\na,b,c\n", "line 1: unknown columns 'text', 'when', expected video and sentence, optionally"),
    ("\nvideo,start\n", "line 2: no column sentence"),
    ("video,sentence,video\n", "line 1: column video occurs twice"),
    ("video,sentence\na,b\na, \n,c\n", "2 wrong rows: line 3: sentence is empty; line 4: video is empty"),
    ('video,sentence\na,"b\nc"\na,one, two\n', "line 4: 3 fields, expected 2; is a ',' not in quotes?"),
    ('video,sentence\na,b\nc,"d\ne,f\n', "line 3: not valid CSV .*; is a quotation mark not closed?"),
    ('video,sentence\na,"b" c\n', "line 2: not valid CSV"),
    ("video,sentence,start,end\na,b,5,\n", "line 2: end is missing, expected both start and end, or neither"),
    ("video,sentence,start,end\na,b,,5\n", "line 2: start is missing"),
    ("video,sentence,start,end\na,b,5,5\n", "line 2: start 5, end 5: expected 0 <= start < end"),
    ("video,sentence,start,end\na,b,0:05,9\n", "line 2: start is '0:05', expected seconds"),
    ("video,sentence,start,end\na,b,-1,9\n", "line 2: start is '-1', expected seconds"),
    ("video,sentence,start,end\na,b,nan,inf\n", "line 2: start is 'nan', expected seconds"),
    ("video,sentence,duration\na,b,0\n", "line 2: duration is 0"),
    ("video,sentence,split\na,b,dev\n", "line 2: split is 'dev', expected train, test, val"),
    ("video,sentence\n" + 7 * "a,\n", "7 wrong rows: line 2: .*line 6: sentence is empty; and 2 more$"),
])  # fmt: skip
def test_wrong_csv(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"table\.csv: {message}") as caught:
        read_table(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [
    ("[1]", r"line 1: expected a JSON object, found '\[1\]'"),
    ('{"video": "a", "sentence": "b"}\n{', "line 2: expected a JSON object"),
    ("[" * 100_000, "line 1: expected a JSON object"),
    ('{"video": 3, "sentence": "b"}', "line 1: video is 3, expected text"),
    ('{"video": "a", "caption": "b"}', "line 1: unknown keys 'caption', expected video, sentence"),
    ('{"video": "a", "sentence": null}', "line 1: sentence is empty"),
    (r'{"video": "a", "sentence": "\ud800"}', "line 1: sentence .* is not valid Unicode"),
    (r'{"video": "a\u0000", "sentence": "b"}', "line 1: video contains a NUL character"),
    ('{"video": "a", "sentence": "b", "start": true, "end": 3}', "line 1: start is True, expected seconds"),
    ('{"video": "a", "sentence": "b", "start": [], "end": 3}', "line 1: start is a list, expected seconds"),
    ('{"video": "a", "sentence": "b", "start": 1, "end": 1' + 400 * "0" + "}", "line 1: end is a number of more than"),
    ('{"video": "a", "sentence": "b", "split": 1}', "line 1: split is 1, expected text"),
])  # fmt: skip
def test_wrong_json_lines(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "table.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"table\.jsonl: {message}"):
        read_table(path)


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"table\.txt: expected a table with the suffix \.csv, \.tsv, \.jsonl"):
        read_table(tmp_path / "table.txt")
    with pytest.raises(InputError, match=r"table\.csv: no such file"):
        read_table(tmp_path / "table.csv")
    (tmp_path / "table.csv").write_bytes(b"video,sentence\na,\xff\n")
    with pytest.raises(InputError, match=r"line 2: byte 3 \(0xff\) is not UTF-8"):
        read_table(tmp_path / "table.csv")
