"""Text from users: UTF-8, or UTF-16/32 with a byte-order mark, and line ends of any operating system."""

import codecs
import itertools
import re
from collections.abc import Iterator
from typing import BinaryIO

from method.runtime.errors import InputError

# Written by Windows. UTF-32 first: its little-endian mark begins with that of UTF-16.
_WIDE_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_LINE_END = re.compile(r"\r\n|\n|\r")


def split_lines(text: str) -> list[str]:
    """The lines of a text, whichever operating system wrote them."""
    return _LINE_END.split(text)


def decode_text(content: bytes, first_line: int = 1) -> str:
    """Decode UTF-8, or UTF-16 or UTF-32 with a byte-order mark, which is dropped.

    InputError with line, byte within the line (both from 1) and value for bytes that are not UTF-8, and for NUL, which
    suggests UTF-16 without its mark.

    Args:
        content: the bytes of a file or a line.
        first_line: number of its first line.
    """
    marked = first_line == 1  # a byte-order mark stands at the beginning of a text only
    wide = next((name for mark, name in _WIDE_MARKS.items() if marked and content.startswith(mark)), None)
    try:
        text = content.decode(wide or "utf-8")
    except UnicodeDecodeError as error:
        if wide:
            raise InputError(f"not valid {wide} text ({error.reason})") from None
        raise _not_text(content, error.start, first_line) from None
    if not wide and (nul := content.find(0)) >= 0:
        raise _not_text(content, nul, first_line)
    return text.removeprefix("\ufeff")


def _not_text(content: bytes, position: int, first_line: int) -> InputError:
    *lines_before, line = split_lines(content[:position].decode("latin-1"))
    value = content[position]
    hint = "; UTF-16 needs a byte-order mark" if value == 0 else ""
    number = first_line + len(lines_before)
    return InputError(f"line {number}: byte {len(line) + 1} (0x{value:02x}) is not UTF-8 text{hint}")


def decoded_lines(stream: BinaryIO) -> Iterator[tuple[int, str, InputError | None]]:
    """Yield number (from 1), text and error of each line of a stream as soon as it arrives.

    A line that is not text has an InputError, and replacement characters in its text.
    """
    first = stream.readline()
    lines: Iterator[bytes] = itertools.chain([first], stream)
    if first.startswith(tuple(_WIDE_MARKS)):  # its line ends are not single bytes
        lines = iter([decode_text(first + stream.read()).encode()])
    for number, line in enumerate((part for read in lines for part in read.splitlines()), start=1):
        try:
            yield number, decode_text(line, number), None
        except InputError as error:
            yield number, line.decode("utf-8", "replace"), error
