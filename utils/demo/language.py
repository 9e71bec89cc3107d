"""The sentences of the demo: a coloured shape and how it moves, in English with part-of-speech tags."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from utils.captions.tagger import TaggedWord

Kind = Literal["action", "object"]

# Verb -> third person and participle.
VERBS = {
    "advance": ("advances", "advancing"),  # to the right
    "blink": ("blinks", "blinking"),
    "bounce": ("bounces", "bouncing"),
    "orbit": ("orbits", "orbiting"),
    "pulse": ("pulses", "pulsing"),
    "rest": ("rests", "resting"),
    "retreat": ("retreats", "retreating"),  # to the left
    "rise": ("rises", "rising"),
    "sink": ("sinks", "sinking"),
    "swing": ("swings", "swinging"),
    "tremble": ("trembles", "trembling"),
    "zigzag": ("zigzags", "zigzagging"),
}
SHAPES = ("circle", "cross", "diamond", "moon", "ring", "square", "star", "triangle")
COLOURS = ("blue", "green", "purple", "red", "yellow")
_FORM = 0.3  # norm of the part of a vector that the forms of a word do not share
_PARTS = {"action": "VERB", "object": "NOUN"}


@dataclass(frozen=True)
class Word:
    """A word of a sentence; inflected forms share their `meaning`. Words without a kind are never edited."""

    text: str
    meaning: str
    kind: Kind | None = None
    tag: str = ""


@dataclass(frozen=True)
class Event:
    """A coloured shape that moves in some way."""

    colour: str
    shape: str
    verb: str


def describe(event: Event, rng: np.random.Generator) -> str:
    """A random sentence about an event."""
    third_person, participle = VERBS[event.verb]
    words = [str(rng.choice(["a", "the"])), event.colour, event.shape]
    return sentence([*words, third_person] if rng.random() < 0.5 else [*words, "is", participle])


def sentence(words: Iterable[str]) -> str:
    """The words as a caption."""
    text = " ".join(words)
    return f"{text[0].upper()}{text[1:]}."


def vocabulary() -> list[Word]:
    """Every word of the language."""
    words = [Word(text, text) for text in ("a", "the", "is", *COLOURS)]
    words += [Word(shape, shape, "object", "NN") for shape in SHAPES]
    for verb, (third_person, participle) in VERBS.items():
        words += [Word(third_person, verb, "action", "VBZ"), Word(participle, verb, "action", "VBG")]
    return words


def word_vectors(width: int, seed: int) -> dict[str, npt.NDArray[np.float64]]:
    """Random vectors (width,) of norm about 1 for every word, similar for the forms of a word."""

    def random(name: str) -> npt.NDArray[np.float64]:
        return np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(width) * width**-0.5

    return {word.text: random(word.meaning) + _FORM * random(f"form of {word.text}") for word in vocabulary()}


def tag_sentences(sentences: Iterable[str]) -> Iterator[Sequence[TaggedWord]]:
    """The tagger of the language, which knows its words by heart."""
    tags = {word.text: TaggedWord(word.text, _PARTS[word.kind], word.tag) for word in vocabulary() if word.kind}
    for own in sentences:
        words = own.rstrip(".").lower().split()
        yield [tags.get(word, TaggedWord(word, "X", "")) for word in words]
