"""Captions with vocabularies for tests of hard negatives."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from method.data.captions import Caption
from method.data.edits import KINDS, EditedQueries, Kind, NegativeSource
from method.negatives.editor import CaptionEditor
from method.negatives.vocabulary import Vocabulary, read_vocabulary

VERBS = ("opens", "takes", "holds", "washes", "throws", "paints")
THINGS = ("door", "cup", "towel", "lamp", "book", "shoe", "box", "phone")


def make_captions(count: int) -> list[Caption]:
    """Captions with one or two verbs and nouns, two for each video; every seventh has nothing to replace."""
    captions = []
    for number in range(count):
        verb, other = VERBS[number % 6], VERBS[(number // 6 + 2) % 6]
        thing, second = THINGS[number % 8], THINGS[(number // 8 + 3) % 8]
        text = f"A man {verb} the {thing}, number {number}."
        if number % 3 == 0:
            text = f"She {verb} a {thing} and {other} the {second} {number} times."
        if number % 7 == 0:
            text = f"Nobody is there {number}."
        captions.append(Caption(f"video{number // 2}#enc#{number % 2}", f"video{number // 2}", text))
    return captions


def write_vocabularies(folder: Path, captions: Sequence[Caption]) -> None:
    """Write the four vocabulary files of captions of `make_captions`."""
    for kind, words, tag in (("action", VERBS, "VBZ"), ("object", THINGS, "NN")):
        tags = {caption.id: {word: tag for word in words if word in caption.text} for caption in captions}
        (folder / f"id_{kind}.json").write_text(json.dumps(tags))
        (folder / f"total_{kind}.json").write_text(json.dumps({tag: words}))


def read_vocabularies_in(folder: Path, captions: Sequence[Caption]) -> list[Vocabulary]:
    """Read the files of `write_vocabularies`."""
    ids = [caption.id for caption in captions]
    return [read_vocabulary(folder / f"id_{kind}.json", folder / f"total_{kind}.json", kind, ids) for kind in KINDS]


def make_editors(folder: Path, captions: Sequence[Caption]) -> list[CaptionEditor]:
    """Editors of both kinds for captions of `make_captions`."""
    write_vocabularies(folder, captions)
    return [CaptionEditor(captions, vocabulary) for vocabulary in read_vocabularies_in(folder, captions)]


def edits_of(source: NegativeSource, captions: Sequence[Caption], epoch: int) -> dict[Kind, EditedQueries | None]:
    """The edits of a batch as training on the CPU gets them."""
    return source.queries(source.prepare(captions, epoch), torch.device("cpu"))


def damage(cache: Path) -> None:
    """Change the first half of every block of a cache, which is rows."""
    for path in cache.glob("block-*.rows"):
        content = path.read_bytes()
        half = len(content) // 2
        path.write_bytes(bytes(byte ^ 1 for byte in content[:half]) + content[half:])
