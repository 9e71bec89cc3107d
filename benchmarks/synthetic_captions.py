"""Synthetic captions as long as those of a dataset, and their edit vocabularies, for when the dataset is not available.

A verb has 13 replacements and a noun 21, enough for the edits of any launch script.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.synthetic.language import PEOPLE, THINGS, VERBS, Event, describe, vocabulary
from method.data.edits import KINDS
from method.runtime.files import write_json, write_text
from utils.demo.language import Word, sentence

# Events per sentence, and the probability of a location: on average 7 words as in Charades-STA, 14 as in ActivityNet.
SHAPES = {"charades": (1, 0.23), "activitynet": (2, 0.0)}
_LOCATIONS = ("in the kitchen", "near the window", "on the stairs", "by the door")
_JOINTS = ("while", "and then")


def write_captions(options: Mapping[str, Any], dataset: str, count: int) -> None:
    """Write training captions and vocabularies to the paths in `options`."""
    rng = np.random.default_rng(0)
    captions = {f"v{i}#enc#0": random_caption(dataset, rng) for i in range(count)}
    for flag in ("caption_train_txt", *(f"{part}_{kind}_dict" for part in ("id", "total") for kind in KINDS)):
        options[flag].parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{caption_id} {sentence(word.text for word in words)}\n" for caption_id, words in captions.items()]
    write_text(options["caption_train_txt"], "".join(lines))
    for kind in KINDS:
        tags = {
            caption_id: {word.text: word.tag for word in words if word.kind == kind}
            for caption_id, words in captions.items()
        }
        words_by_tag: dict[str, list[str]] = {}
        for word in vocabulary():
            if word.kind == kind:
                words_by_tag.setdefault(word.tag, []).append(word.text)
        write_json(options[f"id_{kind}_dict"], tags)
        write_json(options[f"total_{kind}_dict"], words_by_tag)


def random_caption(dataset: str, rng: np.random.Generator) -> list[Word]:
    """The words of a random sentence."""
    events, location = SHAPES[dataset]
    words = _event(rng)
    for _ in range(events - 1):
        words += [*_plain(str(rng.choice(_JOINTS))), *_event(rng)]
    return [*words, *(_plain(str(rng.choice(_LOCATIONS))) if rng.random() < location else ())]


def _event(rng: np.random.Generator) -> list[Word]:
    person, verb, thing = (str(rng.choice(words)) for words in (PEOPLE, list(VERBS), THINGS))
    return describe(Event(person, verb, thing), rng)


def _plain(text: str) -> list[Word]:
    return [Word(word, word) for word in text.split()]
