"""Answer queries on standard output: one of the command line, the lines of a pipe, or those typed at a prompt."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from method.runtime.errors import InputError
from method.runtime.text import decoded_lines
from method.serving.answer import Answer, clean
from method.serving.output import ASCII_BLOCKS, BLOCKS, as_json, as_text, failure_as_json
from method.serving.searcher import MAX_CHARACTERS, Searcher, looks_like_an_id

if TYPE_CHECKING:
    from method.serving.clips import ClipFolder  # imports the package av, which is optional

log = logging.getLogger(__name__)

_PROMPT = "search> "


@dataclass(frozen=True)
class Terminal:
    """Prints the results of a searcher.

    top_k: number of videos to show. json: a line of JSON per query instead of text.
    clips: where to save the moments, if they are to be. offset: how many better videos to leave out.
    """

    searcher: Searcher
    top_k: int
    json: bool
    clips: ClipFolder | None = None
    offset: int = 0

    def answer(self, query: str, number: int | None = None) -> None:
        """Answer a sentence or a caption id of the dataset; `number`: of the query, if there are several."""
        self.show(self.searcher.search(query, self.top_k, self.offset), number)

    def answer_lines(self) -> None:
        """Answer every line of standard input that is not blank.

        Failed queries are reported by line and the others are answered; InputError at the end counts the failures.
        """
        queries = failed = 0
        for number, line, error in decoded_lines(sys.stdin.buffer):
            if not line.strip():
                continue
            queries += 1
            if error is None:
                if line.strip() not in self.searcher.captions and not looks_like_an_id(line.strip()):
                    self.searcher.load_encoder()  # a missing encoder fails the program, not the line
                try:
                    self.answer(line, queries)
                    continue
                except InputError as caught:
                    error = InputError(f"line {number}: {caught}")
            failed += 1
            print(f"error: {error}", file=sys.stderr, flush=True)
            if self.json:
                query = clean(line)[:MAX_CHARACTERS]
                failure = failure_as_json(query, str(error), self.searcher.split, len(self.searcher.video_ids))
                print(json.dumps(failure), flush=True)
        if failed:
            raise InputError(f"{failed} of {queries} queries could not be answered")

    def prompt(self) -> None:
        """Answer queries typed at a prompt until an empty line or the end of input."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  gives input() a history and editing keys
        warn_without_encoder(self.searcher)
        for number, line in enumerate(_typed_lines(), start=1):
            try:
                self.answer(line, number)
            except InputError as error:
                print(f"error: {error}", file=sys.stderr)

    def show(self, answer: Answer, number: int | None = None) -> None:
        """Save the clips of an answer and print it."""
        clips = self.clips.save(answer, number) if self.clips else None
        videos = len(self.searcher.video_ids)
        if self.json:
            print(json.dumps(as_json(answer, self.searcher.split, videos, clips), allow_nan=False), flush=True)
            return
        encoding = sys.stdout.encoding or "ascii"
        try:
            BLOCKS.encode(encoding)
            blocks = BLOCKS
        except (UnicodeEncodeError, LookupError):
            blocks = ASCII_BLOCKS
        text = as_text(answer, videos, blocks, shutil.get_terminal_size().columns)
        print(text.encode(encoding, "replace").decode(encoding), flush=True)  # "?" for what the terminal cannot show


def warn_without_encoder(searcher: Searcher) -> None:
    """Load the text encoder now; log a warning if it cannot be loaded."""
    try:
        searcher.load_encoder()
    except InputError as error:
        log.warning("no text encoder, so only caption ids of the dataset can be searched: %s", error)


def _typed_lines() -> Iterator[str]:
    while True:
        if not sys.stdout.isatty():  # input() would mix its prompt with the answers
            print(_PROMPT, end="", file=sys.stderr, flush=True)
        try:
            line = input(_PROMPT if sys.stdout.isatty() else "")
        except EOFError:
            print(file=sys.stderr)
            return
        except UnicodeDecodeError as error:
            found = f"byte {error.start + 1} (0x{error.object[error.start]:02x})"
            print(f"error: {found} is not {error.encoding} text", file=sys.stderr)
            continue
        if not line.strip():
            return
        yield line
