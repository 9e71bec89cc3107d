"""The comparison of a text encoder with the token features of a dataset."""

from collections.abc import Sequence
from pathlib import Path

import h5py
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from method.data.captions import Caption
from method.data.dataset import FeatureReader
from method.data.features import FeatureFile
from method.text.check import check_encoder
from method.text.encoder import SpecialTokens, TextEncoder
from tests.helpers.tiny_text_encoder import WIDTH, make_text_encoder

CPU = torch.device("cpu")
CAPTIONS = [Caption(f"v{n}#enc#0", f"v{n}", f"a man opens door {n} and sits{' down' * (n % 3)}.") for n in range(45)]
TVR = "--text_layer -2 --text_special_tokens drop"


def write_features(path: Path, folder: Path, captions: Sequence[Caption], layer: int, dropped: int) -> FeatureReader:
    """Token features by plain transformers, not normalised, without `dropped` tokens at each end."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with h5py.File(path, "w") as file:
        for caption in captions:
            with torch.no_grad():
                states = model(**tokenizer(caption.text, return_tensors="pt"), output_hidden_states=True).hidden_states
            rows = states[layer][:, dropped : states[layer].shape[1] - dropped]
            file[caption.id] = 3 * rows.numpy()  # with the extra leading dimension of some files
    file = FeatureFile(path)
    return FeatureReader(file, file, {}, WIDTH, 128, 30)


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_text_encoder(tmp_path_factory.mktemp("check") / "encoder", [caption.text for caption in CAPTIONS])


@pytest.fixture(scope="module")
def like_tvr(encoder_folder: Path) -> FeatureReader:
    return write_features(encoder_folder.parent / "tvr.hdf5", encoder_folder, CAPTIONS, layer=-2, dropped=1)


@pytest.fixture(scope="module")
def like_charades(encoder_folder: Path) -> FeatureReader:
    return write_features(encoder_folder.parent / "charades.hdf5", encoder_folder, CAPTIONS, layer=-1, dropped=0)


def test_the_encoder_of_the_features_matches(
    encoder_folder: Path, like_tvr: FeatureReader, like_charades: FeatureReader
) -> None:
    same = TextEncoder(encoder_folder, WIDTH, 30, CPU)
    as_tvr = TextEncoder(encoder_folder, WIDTH, 30, CPU, layer=-2, special_tokens="drop")
    for encoder, reader in ((same, like_charades), (as_tvr, like_tvr)):
        expected = f"{encoder_folder}: matches the token features of 20 captions (mean cosine 1.0000)"
        assert check_encoder(encoder, reader, CAPTIONS) == (True, expected)


@pytest.mark.parametrize(
    ("layer", "special_tokens", "found"),
    [(-1, "keep", "(20 of 20 captions have a different number of tokens"), (-1, "drop", "(mean cosine ")],
)
def test_other_settings_do_not_match_and_the_right_ones_are_named(
    encoder_folder: Path, like_tvr: FeatureReader, layer: int, special_tokens: SpecialTokens, found: str
) -> None:
    encoder = TextEncoder(encoder_folder, WIDTH, 30, CPU, layer=layer, special_tokens=special_tokens)
    fits, line = check_encoder(encoder, like_tvr, CAPTIONS)
    assert not fits
    assert f"does not match the token features in {like_tvr.texts.path} {found}" in line
    assert f"with --text_layer {layer} --text_special_tokens {special_tokens}; use {TVR} (mean cosine 1.0000)" in line
    assert "\n" not in line


def test_another_encoder_matches_with_no_settings(tmp_path: Path, like_charades: FeatureReader) -> None:
    other = make_text_encoder(tmp_path / "other", [caption.text for caption in CAPTIONS], seed=1)
    fits, line = check_encoder(TextEncoder(other, WIDTH, 30, CPU), like_charades, CAPTIONS)
    assert not fits
    assert "mean cosine" in line
    assert "use --text_layer" not in line


def test_missing_token_features_are_not_an_error(encoder_folder: Path, like_charades: FeatureReader) -> None:
    unknown = [Caption("gone#enc#0", "gone", "a man sits.")]
    fits, line = check_encoder(TextEncoder(encoder_folder, WIDTH, 30, CPU), like_charades, unknown)
    assert not fits
    assert "not compared with the token features" in line
    assert "'gone#enc#0' is missing" in line
