"""Caption files, well-formed and not."""

from pathlib import Path

import pytest

from method.data.captions import Caption, group_by_video, read_captions
from method.runtime.errors import InputError


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "captions.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_id_video_and_text(tmp_path: Path) -> None:
    path = written(tmp_path, "AO8RW#enc#0 a person is putting a book on a shelf.\nv_x#enc#12 he  waves\n")
    assert read_captions(path) == [
        Caption("AO8RW#enc#0", "AO8RW", "a person is putting a book on a shelf."),
        Caption("v_x#enc#12", "v_x", "he  waves"),
    ]


@pytest.mark.parametrize("content", {
    "plain": "a#0 one\nb#0 two\n",
    "no last line end": "a#0 one\nb#0 two",
    "byte-order mark": b"\xef\xbb\xbfa#0 one\nb#0 two\n",
    "UTF-16": "a#0 one\r\nb#0 two\r\n".encode("utf-16"),
    "Windows line ends": "a#0 one\r\nb#0 two\r\n",
    "old Mac line ends": "a#0 one\rb#0 two\r",
    "tabs": "a#0\tone\nb#0 \t two\n",
    "empty lines": "\n\na#0 one\n   \n\t\nb#0 two\n\n",
    "space around": "  a#0 one \n\tb#0 two\t\n",
}.values())  # fmt: skip
def test_accepted_variants_read_the_same(tmp_path: Path, content: str | bytes) -> None:
    assert read_captions(written(tmp_path, content)) == [Caption("a#0", "a", "one"), Caption("b#0", "b", "two")]


@pytest.mark.parametrize(("line", "expected"), [
    ("naïve_é#enc#0 une légère brise 風", Caption("naïve_é#enc#0", "naïve_é", "une légère brise 風")),
    ("my video 1#enc#0 she runs", Caption("my video 1#enc#0", "my video 1", "she runs")),
    ("a#enc#0 he holds a # sign", Caption("a#enc#0", "a", "he holds a # sign")),
    ("folder/a.mp4#0 x", Caption("folder/a.mp4#0", "folder/a.mp4", "x")),
    ("a# x", Caption("a#", "a", "x")),
    ("a#0 one\u2028two", Caption("a#0", "a", "one\u2028two")),
], ids=["non-ASCII", "id with spaces", "text with #", "id with a slash", "empty number", "line separator"])  # fmt: skip
def test_unusual_lines(tmp_path: Path, line: str, expected: Caption) -> None:
    assert read_captions(written(tmp_path, f"{line}\nb#1 z\n")) == [expected, Caption("b#1", "b", "z")]


@pytest.mark.parametrize(("content", "message"), [
    ("a#0 one\nb two\n", r"line 2: expected 'VIDEOID#enc#K the caption', found 'b two'"),
    ("a#0\nb#0 two\n", r"line 1: expected .*, found 'a#0'"),
    ("\n\n#enc#0 one\n", r"line 3: expected .*, found '#enc#0 one'"),
    ("a#0 one\nb#0 two\na#0 three\n", r"line 3: caption id 'a#0' occurs a second time"),
    ("a#0 one\n\r\na#0 one\n", r"line 3: caption id 'a#0' occurs a second time"),
    ("", r"no captions"),
    ("\n \n", r"no captions"),
    (b"a#0 one\nb#0 \xff\xfe\n", r"line 2: byte 5 \(0xff\) is not UTF-8"),
    ("\n".join(f"line {i}" for i in range(9)), r"found 'line 4'; and 4 more$"),
], ids=["no #", "no caption", "no video id", "duplicate", "duplicate behind an empty line", "empty", "blank",
    "not UTF-8", "many"])  # fmt: skip
def test_refused_files(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(InputError, match=message) as caught:
        read_captions(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.txt: no such file"):
        read_captions(tmp_path / "nowhere.txt")
    with pytest.raises(InputError, match="expected a file, found a folder"):
        read_captions(tmp_path)


def test_videos_are_in_the_order_of_their_first_captions() -> None:
    captions = [Caption(id_, id_[0], "") for id_ in ("b#0", "a#0", "b#1", "c#0", "a#1")]
    grouped = group_by_video(captions)
    assert {video: [caption.id for caption in own] for video, own in grouped.items()} == {
        "b": ["b#0", "b#1"],
        "a": ["a#0", "a#1"],
        "c": ["c#0"],
    }
    assert list(grouped) == ["b", "a", "c"]
