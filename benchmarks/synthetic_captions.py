"""Captions as long as those of a launch, and the vocabularies of their edits, made up where no dataset is at hand.

The language is the demo's: a verb has 13 others and a noun 21 to be replaced by, enough for the copies of any launch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from method.data.edits import KINDS
from method.runtime.files import write_json, write_text
from utils.demo.language import PEOPLE, THINGS, VERBS, Event, Word, describe, sentence, vocabulary

# Events in a sentence, and how often it says where: 7 words in the mean, as in Charades-STA, and 14, as in ActivityNet.
SHAPES = {"charades": (1, 0.23), "activitynet": (2, 0.0)}
_PLACES = ("in the kitchen", "near the window", "on the stairs", "by the door")
_JOINTS = ("while", "and then")


def write_captions(options: Mapping[str, Any], dataset: str, count: int) -> None:
    """Write the training captions and the vocabularies to where the options of a launch look for them."""
    rng = np.random.default_rng(0)
    captions = {f"v{i}#enc#0": made_up(dataset, rng) for i in range(count)}
    for flag in ("caption_train_txt", *(f"{part}_{kind}_dict" for part in ("id", "total") for kind in KINDS)):
        options[flag].parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{caption_id} {sentence(words)}\n" for caption_id, words in captions.items()]
    write_text(options["caption_train_txt"], "".join(lines))
    for kind in KINDS:
        tags = {
            caption_id: {word.text: word.tag for word in words if word.kind == kind}
            for caption_id, words in captions.items()
        }
        words_of: dict[str, list[str]] = {}
        for word in vocabulary():
            if word.kind == kind:
                words_of.setdefault(word.tag, []).append(word.text)
        write_json(options[f"id_{kind}_dict"], tags)
        write_json(options[f"total_{kind}_dict"], words_of)


def made_up(dataset: str, rng: np.random.Generator) -> list[Word]:
    """The words of a sentence."""
    events, place = SHAPES[dataset]
    words = _event(rng)
    for _ in range(events - 1):
        words += [*_plain(str(rng.choice(_JOINTS))), *_event(rng)]
    return [*words, *(_plain(str(rng.choice(_PLACES))) if rng.random() < place else ())]


def _event(rng: np.random.Generator) -> list[Word]:
    person, verb, thing = (str(rng.choice(words)) for words in (PEOPLE, list(VERBS), THINGS))
    return describe(Event(person, verb, thing), rng)


def _plain(text: str) -> list[Word]:
    return [Word(word, word) for word in text.split()]
