"""Verbs and nouns of captions, with a made-up tagger and, where it is installed, with spaCy."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from method.data.captions import Caption
from method.negatives.editor import CaptionEditor
from method.negatives.vocabulary import read_vocabulary
from method.runtime.errors import InputError
from utils.captions.tagger import TaggedWord, find_tagger, open_tagger, tag_captions, write_vocabulary

# What a tagger says of these words, in their order.
TAGGED = {
    "John is holding the T-shirts.": "John/PROPN/NNP is/AUX/VBZ holding/VERB/VBG the/DET/DT T/NOUN/NN -/PUNCT/HYPH "
    "shirts/NOUN/NNS ./PUNCT/.",
    "She saw the saw.": "She/PRON/PRP saw/VERB/VBD the/DET/DT saw/NOUN/NN ./PUNCT/.",
    "Doors open, a door opens.": "Doors/NOUN/NNS open/VERB/VBP ,/PUNCT/, a/DET/DT "
    "door/NOUN/NN opens/VERB/VBZ ./PUNCT/.",
    "Nothing.": "Nothing/PRON/NN ./PUNCT/.",
}
CAPTIONS = [Caption(f"v#enc#{k}", "v", text) for k, text in enumerate([*TAGGED, "Nothing."])]


def recorded(sentences: Iterable[str]) -> Iterator[Sequence[TaggedWord]]:
    asked = list(sentences)
    assert len(set(asked)) == len(asked)  # equal sentences are tagged once
    for sentence in asked:
        yield [TaggedWord(*word.rsplit("/", 2)) for word in TAGGED[sentence].split()]


def test_verbs_are_actions_and_nouns_objects() -> None:
    tags = tag_captions(CAPTIONS, recorded)
    assert list(tags["action"].values()) == [{"holding": "VBG"}, {}, {"open": "VBP", "opens": "VBZ"}, {}, {}]
    assert list(tags["object"].values()) == [{"shirts": "NNS"}, {}, {"doors": "NNS", "door": "NN"}, {}, {}]
    assert [*tags["action"]] == [caption.id for caption in CAPTIONS]


def test_the_files_are_read_by_the_editor(tmp_path: Path) -> None:
    captions = [
        Caption(f"v#enc#{k}", "v", f"A man {verb} a cup.") for k, verb in enumerate(["lifts", "drops", "lifts"])
    ]
    tags = {caption.id: {caption.text.split()[2]: "VBZ"} for caption in captions}
    paths = tmp_path / "id.json", tmp_path / "total.json"
    write_vocabulary(*paths, tags)
    assert json.loads(paths[1].read_text()) == {"VBZ": ["lifts", "drops"]}
    vocabulary = read_vocabulary(*paths, "action", [caption.id for caption in captions])
    assert CaptionEditor(captions, vocabulary).edits(captions[0], 3, 0) == ["A man drops a cup."]


def test_without_spacy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    assert find_tagger(None) is None
    for open_it in (open_tagger, find_tagger):
        with pytest.raises(
            InputError, match=r"spaCy cannot be imported .*; run `pip install -r requirements-captions.txt`"
        ):
            open_it("de_core_news_sm")


def test_the_english_model() -> None:
    pytest.importorskip("spacy")
    tagger = find_tagger(None)
    if tagger is None:
        pytest.skip("spaCy has no English model here")
    texts = ["A person has opened the doors and is sitting on a chair.", "Mary has a cup.", "She does not run."]
    tags = tag_captions([Caption(text, "v", text) for text in texts], tagger)
    assert list(tags["action"].values()) == [{"opened": "VBN", "sitting": "VBG"}, {"has": "VBZ"}, {"run": "VB"}]
    assert list(tags["object"].values()) == [{"person": "NN", "doors": "NNS", "chair": "NN"}, {"cup": "NN"}, {}]


def test_models_of_spacy_that_do_not_serve(tmp_path: Path) -> None:
    spacy = pytest.importorskip("spacy")
    with pytest.raises(InputError, match=r"--tagger nowhere: cannot be loaded by spaCy \(.*\); install it, or name"):
        find_tagger("nowhere")
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(InputError, match=r"--tagger .*blank: does not tag parts of speech, expected a model such as"):
        find_tagger(str(tmp_path / "blank"))
