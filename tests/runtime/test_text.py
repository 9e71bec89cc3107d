"""Text of any operating system reads the same, and bytes that are not text are named by line."""

import io
import os
from pathlib import Path

import pytest

from method.runtime.errors import InputError
from method.runtime.files import read_json, read_text
from method.runtime.text import decoded_lines, split_lines


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_of_any_system_reads_the_same(tmp_path: Path, encoding: str, end: str) -> None:
    content = f"a café{end}{end}風 \u2028b{end}".encode(encoding)
    (tmp_path / "x").write_bytes(content)
    lines = ["a café", "", "風 \u2028b"]
    assert split_lines(read_text(tmp_path / "x")) == [*lines, ""]
    found = [(number, line) for number, line, error in decoded_lines(io.BytesIO(content)) if not error]
    assert found == list(enumerate(lines, start=1))
    (tmp_path / "x.json").write_bytes(f'{{"é":{end} 1}}'.encode(encoding))
    assert read_json(tmp_path / "x.json") == {"é": 1}


@pytest.mark.parametrize(("content", "message"), [
    (b"one\ntwo\r\na caf\xe9 opens\n", r"line 3: byte 6 \(0xe9\) is not UTF-8 text$"),
    (b"one\rcut off \xe9\xa2", r"line 2: byte 9 \(0xe9\) is not UTF-8 text$"),
    (b"\xef\xbb\xbfa\xff", r"line 1: byte 5 \(0xff\) is not UTF-8 text$"),
    ("a man\nb".encode("utf-16-le"), r"line 1: byte 2 \(0x00\) is not UTF-8 text; UTF-16 needs a byte-order mark"),
    (b"\xff\xfea\0\x00\xd8", "not valid UTF-16 text"),
    (b"\xff\xfe\0\0a", "not valid UTF-32 text"),
], ids=["Latin-1", "cut off", "behind a mark", "no mark", "broken UTF-16", "broken UTF-32"])  # fmt: skip
def test_what_is_no_text_is_named_by_line_and_byte(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(content)
    for read in (read_text, read_json):
        with pytest.raises(InputError, match=f"^{tmp_path / 'x'}: {message}"):
            read(tmp_path / "x")


def test_lines_of_a_stream_are_there_as_soon_as_they_come_and_bad_ones_cost_no_others() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as stream, open(writing, "wb", buffering=0) as source:
        lines = decoded_lines(stream)
        source.write(b"one\n")
        assert next(lines) == (1, "one", None)
        source.write(b"caf\xe9\n\ntwo")
        number, text, error = next(lines)
        assert (number, text, str(error)) == (2, "caf\ufffd", "line 2: byte 4 (0xe9) is not UTF-8 text")
        assert next(lines) == (3, "", None)
        source.close()
        assert list(lines) == [(4, "two", None)]
    assert list(decoded_lines(io.BytesIO())) == []


def test_a_byte_order_mark_counts_in_the_first_line_only() -> None:
    lines = list(decoded_lines(io.BytesIO(b"a man\n\xff\xfeab\nb\n")))
    assert [(number, text) for number, text, error in lines if not error] == [(1, "a man"), (3, "b")]
    assert str(lines[1][2]) == "line 2: byte 1 (0xff) is not UTF-8 text"
