"""Tables of results as aligned text, Markdown, LaTeX and CSV."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from method.evaluation.report.tables import to_csv

FORMATS = ("text", "markdown", "latex", "csv")
_LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"\textbar{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "–": "--",
    '"': "''",
    # After a line's \\, these would be an argument of it.
    "[": "{[}",
    "*": "{*}",
}
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|~$&])")
_MINUS = re.compile(r"(?<![\w-])-(?=[\d.])")


@dataclass(frozen=True)
class Table:
    """A header and rows of as many cells, which are shown by `str`; `left`: columns of words, aligned to the left."""

    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    left: Collection[int] = (0,)


def show(tables: Sequence[Table], notes: Sequence[str], form: str) -> None:
    """Print tables and then notes, in one of FORMATS.

    In LaTeX notes are comments; in CSV, where they would be rows, they go to standard error.
    """
    makers: dict[str, Callable[[Table], str]] = {
        "text": as_text,
        "markdown": as_markdown,
        "latex": as_latex,
        "csv": as_csv,
    }
    parts = [makers[form](table) for table in tables]
    if form == "csv":
        print("".join(parts), end="")
        for note in notes:
            print(note, file=sys.stderr)
        return
    if form == "latex":
        parts += ["\n".join(f"% {_one_line(note)}" for note in notes)]
    elif form == "markdown":
        parts += [_markdown(note) for note in notes]
    else:
        parts += ["\n".join(notes)]
    print("\n\n".join(part.rstrip("\n") for part in parts if part))


def as_text(table: Table) -> str:
    """Columns aligned for a terminal.

    >>> print(as_text(Table(["run", "R@1"], [["一", 9.5], ["other", "-"]])))
    run    R@1
    一     9.5
    other    -
    """
    lines = [[_one_line(str(cell)) for cell in row] for row in (table.header, *table.rows)]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(_padded(row, widths, table.left)).rstrip() for row in lines)


def _padded(row: Sequence[str], widths: Sequence[int], left: Collection[int]) -> Iterator[str]:
    for place, (cell, width) in enumerate(zip(row, widths, strict=True)):
        gap = " " * (width - _width(cell))
        yield cell + gap if place in left else gap + cell


def as_markdown(table: Table) -> str:
    r"""A table in GitHub's Markdown.

    >>> print(as_markdown(Table(["run", "R@1"], [["a|b", 9.5]])))
    | run | R@1 |
    |:--|--:|
    | a\|b | 9.5 |
    """
    header, *rows = (
        "| " + " | ".join(_markdown(str(cell)) for cell in row) + " |" for row in (table.header, *table.rows)
    )
    rule = "|" + "|".join(":--" if place in table.left else "--:" for place in range(len(table.header))) + "|"
    return "\n".join([header, rule, *rows])


def as_latex(table: Table) -> str:
    r"""A tabular for LaTeX with the package booktabs.

    >>> print(as_latex(Table(["run", "R@1"], [["a_b", "-9.5"]])))
    \begin{tabular}{lr}
    \toprule
    run & R@1 \\
    \midrule
    a\_b & $-$9.5 \\
    \bottomrule
    \end{tabular}
    """
    header, *rows = (" & ".join(_latex(str(cell)) for cell in row) + r" \\" for row in (table.header, *table.rows))
    columns = "".join("l" if place in table.left else "r" for place in range(len(table.header)))
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", header, r"\midrule", *rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def as_csv(table: Table) -> str:
    """Comma-separated values; None is an empty cell."""
    return to_csv(table.header, [["" if cell is None else cell for cell in row] for row in table.rows])


def _latex(text: str) -> str:
    escaped = "".join(_LATEX.get(letter, letter) for letter in _one_line(text))
    return _MINUS.sub("$-$", escaped)


def _markdown(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _width(text: str) -> int:
    """Columns of a terminal that a text takes."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.combining(letter) > 0 for letter in text)
