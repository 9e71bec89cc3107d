"""A grammar of captions: a person, an action and an object, in English with part-of-speech tags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.demo.language import Word

PEOPLE = ("man", "woman", "boy", "girl", "chef", "farmer", "doctor", "clown")
# Any person can do any of these to any thing. Verb -> third person and participle.
VERBS = {
    "carry": ("carries", "carrying"),
    "clean": ("cleans", "cleaning"),
    "drop": ("drops", "dropping"),
    "examine": ("examines", "examining"),
    "hide": ("hides", "hiding"),
    "hold": ("holds", "holding"),
    "kick": ("kicks", "kicking"),
    "lift": ("lifts", "lifting"),
    "paint": ("paints", "painting"),
    "pull": ("pulls", "pulling"),
    "push": ("pushes", "pushing"),
    "repair": ("repairs", "repairing"),
    "throw": ("throws", "throwing"),
    "wash": ("washes", "washing"),
}
THINGS = (
    *("basket", "bicycle", "blanket", "bottle", "camera", "chair", "clock"),
    *("drum", "guitar", "ladder", "lamp", "mirror", "suitcase", "table"),
)
_MANNERS = ("slowly", "quickly", "carefully", "happily")
_LOOKS = ("small", "old", "heavy", "red", "shiny")
_COUNTS = ("two", "three", "several", "many")


@dataclass(frozen=True)
class Event:
    """A person performs an action on a thing."""

    person: str
    verb: str
    thing: str


def describe(event: Event, rng: np.random.Generator) -> list[Word]:
    """A random sentence about an event, as words in order without capital and full stop."""
    third_person, participle = VERBS[event.verb]
    words = [_one_of(("a", "the"), rng), Word(event.person, event.person, "object", "NN")]
    if rng.random() < 0.5:
        words += [*_maybe(_MANNERS, rng), Word(third_person, event.verb, "action", "VBZ")]
    else:
        words += [_plain("is"), *_maybe(_MANNERS, rng), Word(participle, event.verb, "action", "VBG")]
    several = rng.random() < 0.3
    words += [_one_of(_COUNTS if several else ("a", "the"), rng), *_maybe(_LOOKS, rng)]
    if several:
        words.append(Word(f"{event.thing}s", event.thing, "object", "NNS"))
    else:
        words.append(Word(event.thing, event.thing, "object", "NN"))
    return _fix_articles(words)


def vocabulary() -> list[Word]:
    """Every word of the language."""
    words = [_plain(text) for text in (*_MANNERS, *_LOOKS, *_COUNTS, "a", "the", "is", "an")]
    words += [Word(person, person, "object", "NN") for person in PEOPLE]
    for verb, (third_person, participle) in VERBS.items():
        words += [Word(third_person, verb, "action", "VBZ"), Word(participle, verb, "action", "VBG")]
    for thing in THINGS:
        words += [Word(thing, thing, "object", "NN"), Word(f"{thing}s", thing, "object", "NNS")]
    return words


def _plain(text: str) -> Word:
    return Word(text, text)


def _one_of(words: Sequence[str], rng: np.random.Generator) -> Word:
    return _plain(words[int(rng.integers(len(words)))])


def _maybe(words: Sequence[str], rng: np.random.Generator) -> list[Word]:
    return [_one_of(words, rng)] if rng.random() < 0.4 else []


def _fix_articles(words: Sequence[Word]) -> list[Word]:
    following = [*(word.text for word in words[1:]), ""]
    return [
        Word("an", "a") if word.text == "a" and after.startswith(tuple("aeiou")) else word
        for word, after in zip(words, following, strict=True)
    ]
