"""Tables in every format: alignment and escaping."""

from __future__ import annotations

import csv
import io

import pytest

from utils.runs.tables import Table, as_csv, as_latex, as_markdown, as_text, show

HOSTILE = 'a_b & 50% of $x^2$ #1 {y} ~ \\cmd | <b> "q" [z] *w* `c`'


def test_columns_of_text_are_aligned_whatever_the_letters() -> None:
    rows: list[list[object]] = [["猫", -1.5, "x"], ["cafe\u0301", 10, "a\nb"], ["long name", None, ""]]
    lines = as_text(Table(["run", "n", "text"], rows, left=(0, 2))).splitlines()
    assert lines == [
        "run           n  text",
        "猫         -1.5  x",
        "cafe\u0301         10  a b",
        "long name  None",
    ]


def test_latex_is_escaped() -> None:
    text = as_latex(Table(["[run]", "± –"], [[HOSTILE, "-1.5 to -0.2"], ["a-1", "2026-01-31 1-2"]]))
    lines = text.splitlines()
    assert lines[2] == r"{[}run] & $\pm$ -- \\"
    assert lines[4] == (
        r"a\_b \& 50\% of \$x\textasciicircum{}2\$ \#1 \{y\} \textasciitilde{} \textbackslash{}cmd \textbar{} "
        r"\textless{}b\textgreater{} ''q'' {[}z] {*}w{*} `c` & $-$1.5 to $-$0.2 \\"
    )
    assert lines[5] == r"a-1 & 2026-01-31 1-2 \\"
    assert lines[0] == r"\begin{tabular}{lr}"


def test_markdown_is_escaped() -> None:
    lines = as_markdown(Table(["run", "n"], [[HOSTILE, 1], ["two\nlines", 2]])).splitlines()
    assert lines[1] == "|:--|--:|"
    assert lines[2] == (
        r"| a\_b \& 50% of \$x^2\$ #1 {y} \~ \\cmd \| \<b\> "
        r'"q" \[z\] \*w\* \`c\` | 1 |'
    )
    assert lines[3:] == ["| two lines | 2 |"]


def test_csv_is_read_back() -> None:
    rows = [[HOSTILE, 1.25, None], ["two\nlines, really", -1, "x"]]
    read = list(csv.reader(io.StringIO(as_csv(Table(["a", "b", "c"], rows)), newline="")))
    assert read == [["a", "b", "c"], [HOSTILE, "1.25", ""], ["two\nlines, really", "-1", "x"]]


@pytest.mark.parametrize(("form", "out", "err"), [
    ("text", "a  b\nx  1\n\nn_1\nn2\n", ""),
    ("markdown", "| a | b |\n|:--|--:|\n| x | 1 |\n\nn\\_1\n\nn2\n", ""),
    ("csv", "a,b\nx,1\n", "n_1\nn2\n"),
])  # fmt: skip
def test_notes_stand_where_they_do_no_harm(form: str, out: str, err: str, capsys: pytest.CaptureFixture[str]) -> None:
    show([Table(["a", "b"], [["x", 1]])], ["n_1", "n2"], form)
    assert capsys.readouterr() == (out, err)


def test_notes_in_latex_are_comments(capsys: pytest.CaptureFixture[str]) -> None:
    show([Table(["a"], [["x"]])], ["n_1", "two\nlines"], "latex")
    assert capsys.readouterr().out.endswith("\\end{tabular}\n\n% n_1\n% two lines\n")
