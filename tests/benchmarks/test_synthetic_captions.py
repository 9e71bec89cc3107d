"""What the benchmark of edited captions makes up is as long as the captions of a launch, and can be edited as often."""

from pathlib import Path
from statistics import mean

import pytest

from benchmarks.synthetic_captions import write_captions
from benchmarks.text_encoder import STEPS
from method.config.options import read_options
from method.config.settings import negatives_settings
from method.data.captions import read_captions
from method.data.edits import KINDS
from method.negatives.editor import CaptionEditor
from method.negatives.source import read_vocabularies


@pytest.mark.parametrize(("dataset", "words"), [("charades", 7), ("activitynet", 14)])
def test_captions_have_the_length_and_the_edits_of_a_launch(tmp_path: Path, dataset: str, words: int) -> None:
    flags = ["--dataset_name", dataset, "--root_path", str(tmp_path), "--neg_query_loss", "both"]
    options = read_options(flags)
    count, copies = STEPS[dataset]
    write_captions(options, dataset, count)
    captions = read_captions(options.caption_train_txt)
    assert len(captions) == count
    assert mean(len(caption.text.split()) for caption in captions) == pytest.approx(words, abs=0.5)
    vocabularies = read_vocabularies(negatives_settings(options), {caption.id for caption in captions}, KINDS)
    assert [vocabulary.kind for vocabulary in vocabularies] == ["action", "object"]
    for vocabulary in vocabularies:
        editor = CaptionEditor(captions, vocabulary)
        assert {len(editor.edits(caption, copies, 0)) for caption in captions} == {copies}
