"""The older binary form of frame features, as MS-SL and programs that follow it publish them.

A folder with `feature.bin` (float32 rows, little-endian), `shape.txt` ("N D"), `id.txt` (the id of each row, separated
by white space) and `video2frames.txt` (a Python dictionary: video -> list of its frames' ids, in order).
"""

from __future__ import annotations

import ast
import itertools
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from method.data.preprocessing import FloatRows
from method.runtime.errors import InputError, shown, summarize
from method.runtime.files import read_text, require_file
from method.runtime.text import decode_text

log = logging.getLogger(__name__)

FEATURES, SHAPE, IDS, FRAMES = "feature.bin", "shape.txt", "id.txt", "video2frames.txt"
_ROW_TYPE = np.dtype("<f4")
_STRING = r"[uU]?(?:'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\")"
_TOKEN = re.compile(rf"[\s,]+|(?P<mark>[{{}}\[\]():])|(?P<string>{_STRING})")
_BLOCK = 1 << 20  # characters of the dictionary that are parsed at a time
_LONGEST_TOKEN = 1 << 16
_NUMBER = re.compile(r"(\d+)\D*$")


class BinaryFeatures:
    """The rows of a folder in the binary form, by video.

    The ids of all rows are held in memory, the features of one video at a time.

    Args:
        folder: of the four files.
        any_order: accept lists in which the numbers at the end of the frames' ids do not ascend.

    Raises:
        InputError: naming file and line, for files that are missing or malformed or do not fit each other.
    """

    def __init__(self, folder: Path, any_order: bool = False) -> None:
        self.folder = folder
        for name in (SHAPE, IDS, FRAMES):
            require_file(folder / name)
        count, self.width = _read_shape(folder / SHAPE)
        path = folder / FEATURES
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        expected, found = count * self.width * _ROW_TYPE.itemsize, path.stat().st_size
        if found != expected:
            raise InputError(f"{path}: {found} bytes, expected {expected}: {count} x {self.width} float32 ({SHAPE})")
        rows = _read_ids(folder / IDS, count)
        self._rows = _rows_of_videos(folder / FRAMES, rows, any_order)
        self.ids: Sequence[str] = list(self._rows)
        unused = count - len(np.unique(np.concatenate(list(self._rows.values()))))
        if unused:
            log.warning("%s: %d of %d rows belong to no video", folder / IDS, unused, count)

    @property
    def bytes(self) -> int:
        """Bytes of all rows that are read."""
        return sum(len(rows) for rows in self._rows.values()) * self.width * _ROW_TYPE.itemsize

    def where(self, video_id: str) -> str:
        """What to name in a message about a video."""
        return f"{self.folder / FEATURES}: video {video_id!r}"

    def read(self, video_id: str) -> FloatRows:
        """The frames of a video, (n, width)."""
        rows_n = self._rows[video_id]
        frames_nD = np.empty((len(rows_n), self.width), _ROW_TYPE)
        breaks = [0, *(np.flatnonzero(np.diff(rows_n) != 1) + 1).tolist(), len(rows_n)]  # runs of neighbouring rows
        try:
            with (self.folder / FEATURES).open("rb") as file:
                for start, end in itertools.pairwise(breaks):
                    file.seek(int(rows_n[start]) * self.width * _ROW_TYPE.itemsize)
                    if file.readinto(frames_nD[start:end].data.cast("B")) != frames_nD[start:end].nbytes:
                        raise InputError(f"{self.where(video_id)}: the file has become shorter")
        except OSError as error:
            raise InputError(f"{self.where(video_id)}: {os.strerror(error.errno or 0)}") from error
        return frames_nD.astype(np.float32, copy=False)


def _read_shape(path: Path) -> tuple[int, int]:
    words = read_text(path).split()
    if len(words) != 2 or not all(re.fullmatch(r"[0-9]{1,12}", word) and int(word) for word in words):
        raise InputError(f"{path}: line 1: expected two whole numbers, rows and width, found {shown(' '.join(words))}")
    return int(words[0]), int(words[1])


def _read_ids(path: Path, count: int) -> dict[str, int]:
    """The row of each id. InputError for an id that occurs twice, and for another number of ids."""
    rows: dict[str, int] = {}
    row = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                words = decode_text(line, number).split()
            except InputError as error:
                raise InputError(f"{path}: {error}") from None
            for word in words:
                if rows.setdefault(word, row) != row:
                    raise InputError(f"{path}: line {number}: id {shown(word)} is that of row {rows[word]} too")
                row += 1
    if row != count:
        raise InputError(f"{path}: {row} ids, expected {count} as {SHAPE} says")
    return rows


def _rows_of_videos(path: Path, rows: dict[str, int], any_order: bool) -> dict[str, npt.NDArray[np.int64]]:
    videos: dict[str, npt.NDArray[np.int64]] = {}
    problems: list[str] = []
    for line, video_id, frames in read_frames(path):
        where = f"line {line}: video {shown(video_id)}"
        missing = [frame for frame in frames if frame not in rows]
        if video_id in videos:
            problems.append(f"{where} occurs a second time")
        elif not video_id or "#" in video_id or not {".", ".."}.isdisjoint(video_id.split("/")):
            problems.append(f"{where}: not the id of a video, which is not empty and has no '#'")
        elif not frames:
            problems.append(f"{where} has no frames")
        elif missing:
            problems.append(
                f"{where}: {len(missing)} of {len(frames)} frames not in {IDS}, such as {shown(missing[0])}"
            )
        elif len(set(frames)) != len(frames):
            problems.append(f"{where}: a frame occurs twice")
        elif not any_order and (pair := _out_of_order(frames)):
            problems.append(f"{where}: {shown(pair[1])} after {shown(pair[0])}; --any_order keeps this order")
        else:
            videos[video_id] = np.fromiter((rows[frame] for frame in frames), np.int64, len(frames))
    if problems:
        raise InputError(f"{path}: {summarize(problems)}")
    if not videos:
        raise InputError(f"{path}: no videos, expected a dictionary: video -> list of frames")
    return videos


def _out_of_order(frames: Iterable[str]) -> tuple[str, str] | None:
    """The first two neighbours whose numbers, at the end of their ids, do not ascend.

    >>> _out_of_order(["v_0", "v_1", "v_10", "v_2"])
    ('v_10', 'v_2')
    """
    before, least = "", -1
    for frame in frames:
        match = _NUMBER.search(frame)
        if match is None:  # no numbers to compare
            return None
        if int(match[1]) <= least:
            return before, frame
        before, least = frame, int(match[1])
    return None


def read_frames(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Line, video id and frames of each entry of a dictionary of lists of strings, parsed piece by piece.

    The text is Python's, but nothing of it is executed, and memory does not grow with it.

    Raises:
        InputError: naming file and line, for any other text.
    """

    def wrong(line: int, found: str) -> InputError:
        return InputError(f"{path}: line {line}: expected {{'video': ['frame', ...], ...}}, found {shown(found)}")

    state, closing, video_id = "start", "", ""
    frames: list[str] = []
    line = first_line = 1
    for line, token in _tokens(path):
        is_string = token[-1] in "'\""
        if state == "start" and token == "{":
            state = "key"
        elif state == "key" and is_string:
            state, video_id, first_line = "colon", _string(token), line
        elif state == "key" and token == "}":
            state = "end"
        elif state == "colon" and token == ":":
            state = "list"
        elif state == "list" and token in ("[", "("):
            state, closing, frames = "frames", {"[": "]", "(": ")"}[token], []
        elif state == "frames" and is_string:
            frames.append(_string(token))
        elif state == "frames" and token == closing:
            state = "key"
            yield first_line, video_id, frames
        else:
            raise wrong(line, token)
    if state != "end":
        raise wrong(line, "the end of the file")


def _string(token: str) -> str:
    return token[1:-1] if "\\" not in token and token[0] in "'\"" else str(ast.literal_eval(token))


def _tokens(path: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each token: a string or one of {}[]():; commas and white space are skipped."""
    text, line = "", 1
    with path.open("r", encoding="utf-8-sig") as file:
        while True:
            try:
                block = file.read(_BLOCK)
            except UnicodeDecodeError as error:
                raise InputError(f"{path}: after line {line}: not UTF-8 text ({error.reason})") from None
            text += block
            position = 0
            # A token at the end of the block may go on in the next one.
            while position < len(text) - (_LONGEST_TOKEN if block else 0):
                match = _TOKEN.match(text, position)
                if match is None:
                    found = text[position : position + 40].splitlines()[0]
                    raise InputError(f"{path}: line {line}: expected a string or a bracket, found {shown(found)}")
                if match.lastgroup:
                    yield line, match[0]
                else:
                    line += match[0].count("\n")
                position = match.end()
            text = text[position:]
            if not block:
                return
