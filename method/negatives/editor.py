"""Edited captions: copies of a caption in which one verb or noun is replaced by another word with the same tag.

All whole-word occurrences of the word are replaced, each with matching case. The rest of the sentence is unchanged.

Random draws depend only on a key such as (run seed, epoch, caption id, kind), so that every process on every machine
draws the same edits.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from method.data.captions import Caption
from method.data.edits import Kind
from method.negatives.vocabulary import Vocabulary
from method.negatives.words import Span, find_words, match_case, normalize, strip_quotes

Key = str | int


@dataclass(frozen=True)
class Slot:
    """A word of a caption that can be replaced.

    spans: its occurrences in the text.
    words: the words of its tag.
    original: its own index in `words`, len(words) if it is not one of them.
    """

    spans: tuple[Span, ...]
    words: tuple[str, ...]
    original: int

    def __len__(self) -> int:
        return len(self.words) - (self.original < len(self.words))

    def edit(self, text: str, choice: int) -> str:
        """The text with this word replaced by number `choice` of the len(self) other words."""
        word = self.words[choice + (choice >= self.original)]
        parts, copied = [], 0
        for start, end in self.spans:
            parts += [text[copied:start], match_case(word, text[start:end])]
            copied = end
        return "".join([*parts, text[copied:]])


class CaptionEditor:
    """Draws edits of captions with one vocabulary. The replaceable words are located once, in the constructor."""

    def __init__(self, captions: Sequence[Caption], vocabulary: Vocabulary) -> None:
        self.kind: Kind = vocabulary.kind
        indices = {
            tag: {normalize(word): index for index, word in enumerate(words)}
            for tag, words in vocabulary.words_of.items()
        }
        self._slots = {caption.id: tuple(_find_slots(caption, vocabulary, indices)) for caption in captions}

    def edits(self, caption: Caption, count: int, *key: Key) -> list[str]:
        """At most `count` distinct edits of a caption, never the caption itself; none if nothing can be replaced.

        Edits are spread evenly over the replaceable words: their counts differ by at most one, unless a word runs out
        of replacements. Edits that differ only in case are not distinct.
        """
        return [edit for _, edit in self.edits_by_word(caption, count, *key)]

    def edits_by_word(self, caption: Caption, count: int, *key: Key) -> list[tuple[int, str]]:
        """The edits of `edits`, each with the number of the replaced word."""
        slots = self._slots[caption.id]
        seen = {normalize(caption.text)}
        edits: list[tuple[int, str]] = []

        def accept(slot: int, choice: int) -> bool:
            edit = slots[slot].edit(caption.text, choice)
            normalized = normalize(edit)
            is_new = normalized not in seen
            if is_new:
                seen.add(normalized)
                edits.append((slot, edit))
            return is_new

        draw_evenly([len(slot) for slot in slots], count, accept, *key)
        return edits

    def max_edits(self, caption: Caption) -> int:
        """An upper bound on the number of distinct edits of a caption."""
        return sum(map(len, self._slots[caption.id]))

    def count_editable(self) -> int:
        """Number of captions that have edits."""
        return sum(bool(slots) for slots in self._slots.values())


def draw_evenly(sizes: Sequence[int], count: int, accept: Callable[[int, int], bool], *key: Key) -> None:
    """Draw items without replacement, evenly over groups, until `count` are accepted or none is left.

    The numbers of accepted items differ by at most one between groups, unless a group is exhausted.

    Args:
        sizes: number of items in each group.
        count: how many to accept.
        accept: called with the index of a group and of an item in it; returns whether the item counts.
        key: seed of the order.
    """
    uniform = uniform_source(*key)
    groups = [(group, _shuffled(sizes[group], uniform)) for group in _shuffled(len(sizes), uniform)]
    accepted = 0
    while groups and accepted < count:
        remaining = []
        for group, items in groups:
            if accepted == count:
                return
            for item in items:
                if accept(group, item):
                    accepted += 1
                    remaining.append((group, items))
                    break
        groups = remaining


def uniform_source(*key: Key) -> Callable[[], float]:
    """A source of random numbers in [0, 1), determined by the key in every process and every version of Python."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=8).digest()
    # Python guarantees that random() stays reproducible; other functions of the module may change.
    return random.Random(int.from_bytes(digest, "little")).random


def _shuffled(size: int, uniform: Callable[[], float]) -> Iterator[int]:
    """0..size-1 in a random order: a lazy Fisher-Yates shuffle, whose cost is proportional to the items taken."""
    swapped: dict[int, int] = {}
    for last in range(size - 1, -1, -1):
        index = int(uniform() * (last + 1))
        yield swapped.get(index, index)
        swapped[index] = swapped.pop(last, last)


def _find_slots(caption: Caption, vocabulary: Vocabulary, indices: Mapping[str, Mapping[str, int]]) -> Iterator[Slot]:
    tags = vocabulary.tags_of.get(caption.id, {})
    for word, spans in find_words(caption.text, tags).items():
        words = vocabulary.words_of.get(tags[word], ())
        slot = Slot(spans, words, indices.get(tags[word], {}).get(normalize(strip_quotes(word)), len(words)))
        if len(slot):
            yield slot
