import json
import logging
from pathlib import Path
from typing import Any

import pytest

from method.negatives.vocabulary import read_vocabulary
from method.runtime.errors import InputError

TAGS = {"v#0": {"walks": "VBZ", "Penny": "NNP"}, "v#1": {"sits": "VBZ", " ": "VBZ", "--": "VBZ"}}
WORDS = {"VBZ": ["walks", "sits", "Walks", "'s", "n't", "", "  picks   up", "&", "runs'"], "NNP": ["Penny", "Amy"]}


def write(folder: Path, tags: Any, words: Any) -> tuple[Path, Path]:
    paths = folder / "id.json", folder / "total.json"
    for path, value in zip(paths, (tags, words), strict=True):
        path.write_text(value if isinstance(value, str) else json.dumps(value))
    return paths


def test_fragments_and_duplicates_are_dropped(tmp_path: Path) -> None:
    vocabulary = read_vocabulary(*write(tmp_path, TAGS, WORDS), "object", ["v#0", "v#1"])
    assert vocabulary.tags_of == {"v#0": {"walks": "VBZ", "Penny": "NNP"}, "v#1": {"sits": "VBZ"}}
    assert vocabulary.words_of == {"VBZ": ("walks", "sits", "picks up"), "NNP": ("Penny", "Amy")}


def test_proper_nouns_are_never_actions(tmp_path: Path) -> None:
    vocabulary = read_vocabulary(*write(tmp_path, TAGS, WORDS), "action", ["v#0", "v#1"])
    assert vocabulary.tags_of == {"v#0": {"walks": "VBZ"}, "v#1": {"sits": "VBZ"}}


@pytest.mark.parametrize(("tags", "words", "named"), [
    ("{", WORDS, "id.json: not valid JSON"),
    (TAGS, "", "total.json: not valid JSON"),
    ([], WORDS, "id.json: expected a JSON object from caption ids"),
    ({}, WORDS, "id.json: empty"),
    (TAGS, {}, "total.json: empty"),
    ({"v#0": ["walks"]}, WORDS, "id.json: 'v#0': expected {word: tag}, found a list"),
    ({"v#0": {"walks": 3}}, WORDS, "id.json: 'v#0': the tag of 'walks' is 3, expected text"),
    ({"v#0": {"walks": None}}, WORDS, "the tag of 'walks' is null"),
    (TAGS, {"VBZ": "walks"}, "total.json: tag 'VBZ': expected a list of words, found text 'walks'"),
    (TAGS, {"VBZ": ["walks", ["sits"]]}, "total.json: tag 'VBZ': word 1 is a list"),
    (TAGS, {"VBZ": {"walks": 2}}, "total.json: tag 'VBZ': expected a list of words, found an object"),
    (TAGS, {"VBG": ["walking"]}, "total.json: no words for any tag of id.json: 'VBZ' (2 words in captions)"),
    ({"v#0": {}}, WORDS, "id.json: no caption has a replaceable word"),
    ({"w#0": {"walks": "VBZ"}}, WORDS, "id.json: no caption of the dataset is listed: found ids like 'w#0'"),
])  # fmt: skip
def test_malformed_files_are_refused(tmp_path: Path, tags: Any, words: Any, named: str) -> None:
    with pytest.raises(InputError) as caught:
        read_vocabulary(*write(tmp_path, tags, words), "action", ["v#0", "v#1"])
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.json: no such file"):
        read_vocabulary(tmp_path / "nowhere.json", tmp_path / "total.json", "action", [])


def test_partial_disagreements_are_warnings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tags = {"v#0": {"walks": "VBZ", "big": "JJ"}, **{f"w#{i}": {} for i in range(7)}}
    with caplog.at_level(logging.WARNING):
        read_vocabulary(*write(tmp_path, tags, WORDS), "action", ["v#0", "v#1"])
    assert [record.getMessage().split("json: ")[1] for record in caplog.records] == [
        "7 captions are not in the dataset: 'w#0'; 'w#1'; 'w#2'; 'w#3'; 'w#4'; and 2 more",
        "1 captions of the dataset are missing and get no edits: 'v#1'",
        "no words for some tags, whose words are not replaced: 'JJ' (1 words in captions)",
    ]
