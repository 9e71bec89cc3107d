"""A dataset of own videos and sentences: written whole, replaced at once, encoded no more than needed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

from method.config.options import read_options
from method.data.captions import read_captions
from method.evaluation.moments import read_moments
from method.runtime import disk
from method.runtime.errors import InputError
from method.runtime.locks import exclusive_lock
from method.text.encoder import TextEncoder
from tests.helpers.own_videos import NAME, SENTENCES, OwnVideos, fake_tagger
from tests.helpers.tiny_text_encoder import make_text_encoder
from utils.captions import dataset
from utils.captions.dataset import add_captions
from utils.captions.text_folder import finish_interrupted


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_text_encoder(tmp_path_factory.mktemp("encoder") / "tiny", SENTENCES)


@pytest.fixture
def own(tmp_path: Path, encoder: Path) -> OwnVideos:
    videos = OwnVideos(tmp_path, encoder)
    videos.write_table()
    return videos


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sentences that were encoded, in order."""
    sentences: list[str] = []
    encode = TextEncoder.encode

    def counting(self: TextEncoder, given: list[str]) -> Any:
        sentences.extend(given)
        return encode(self, given)

    monkeypatch.setattr(TextEncoder, "encode", counting)
    return sentences


def add(own: OwnVideos, **changes: Any) -> list[str]:
    return add_captions(own.settings(**changes), lambda: fake_tagger)


def options_of(own: OwnVideos) -> Any:
    return read_options(["--dataset_name", NAME, "--root_path", str(own.root)])


def stored(own: OwnVideos) -> dict[str, torch.Tensor]:
    with h5py.File(options_of(own).text_feat_path) as file:
        captions = [c for split in ("train", "test") for c in read_captions(options_of(own)[f"caption_{split}_txt"])]
        return {caption.text: torch.from_numpy(file[caption.id][()]) for caption in captions}


def test_the_files_are_those_of_a_published_dataset(own: OwnVideos) -> None:
    rows = [(own.ids[0], "a person opens the door", "", "", "train"), (own.ids[1], "a lamp", 2, 5.5, "test")]
    own.write_table(rows, "video,sentence,start,end,split")
    lines = add(own)
    assert lines == [
        f"{own.folder / 'mine.yaml'}: 1 training videos with 1 captions, 1 evaluated ones with 1 (1 with a moment); "
        "2 of 2 sentences encoded"
    ]
    text = own.folder / "TextData"
    assert (text / "minetrain.caption.txt").read_text() == "day 0/clip 00#enc#0 a person opens the door\n"
    assert json.loads((text / "mine_id_action_dict.json").read_text()) == {
        "day 0/clip 00#enc#0": {"opens": "VBZ"}, "day 1/clip 01#enc#0": {}
    }  # fmt: skip
    assert json.loads((text / "mine_total_object_dict.json").read_text()) == {"NN": ["door", "lamp", "person"]}
    moments = read_moments(text / "mineval.moments.jsonl", ["day 1/clip 01#enc#0"])
    assert moments is not None
    assert moments["day 1/clip 01#enc#0"].span == (0.1, 0.275)
    with h5py.File(text / "roberta_mine_query_feat.hdf5") as file:
        assert file["day 1/clip 01#enc#0"].shape == (4, 32)
        assert file.attrs["encoder"] == "tiny"
        assert json.loads(file.attrs["recipe"]).keys() == {"encoder_sha256", "text_layer", "text_special_tokens"}
    assert {path.name for path in own.folder.iterdir()} == {"FeatureData", "TextData", "mine.yaml", ".captions.lock"}


def test_the_yaml_file_describes_it(own: OwnVideos) -> None:
    (own.folder / "mine.yaml").write_text("base: base.yaml\nmax_ctx_l: 64 # mine\nseed: 3\n")
    add(own, layer=-2, special_tokens="drop")
    options = options_of(own)
    assert (options.visual_feat_dim, options.visual_flow_feat_dim, options.q_feat_size) == (10, 6, 32)
    assert (options.text_layer, options.text_special_tokens, options.text_encoder) == (-2, "drop", own.encoder)
    assert (options.max_ctx_l, options.seed, options.deformable_offset_scale) == (64, 3, 6.0)
    assert options.video_feat_path == own.features
    add(own, special_tokens="keep")
    assert "max_ctx_l: 64 # mine\n" in (own.folder / "mine.yaml").read_text()


def test_a_dataset_with_one_stream_has_one_branch(own: OwnVideos) -> None:
    with h5py.File(own.features, "a") as file:
        for video_id in own.ids:
            del file[f"{video_id}/i3d_feat"]
    add(own)
    options = options_of(own)
    assert (options.action_branch, options.phrase_action_branch, options.cross_branch_fusion) == (False, True, False)
    assert options.visual_flow_feat_dim == 6


def test_only_new_sentences_are_encoded(own: OwnVideos, encoded: list[str]) -> None:
    add(own)
    assert len(encoded) == 32
    before = stored(own)
    assert (own.folder / "TextData" / "mineval.caption.txt").exists()
    rows = [(video_id, SENTENCES[3 * index]) for index, video_id in enumerate(own.ids[::-1])]
    own.write_table([*rows, (own.ids[0], "a new sentence")])
    encoded.clear()
    (own.folder / "TextData" / "labels.jsonl").write_text("the user's own")
    lines = add(own)
    assert {*encoded} == {*(text for _, text in rows), "a new sentence"} - before.keys()
    assert len(encoded) == 6
    assert f"{len(encoded)} of 17 sentences encoded" in lines[0]
    after = stored(own)
    assert len(after) == 17
    assert all(torch.equal(after[text], before[text]) for text in after if text in before)
    assert (own.folder / "TextData" / "labels.jsonl").read_text() == "the user's own"
    encoded.clear()
    add(own)
    assert encoded == []


def test_features_of_another_encoder_or_layer_are_never_mixed(
    own: OwnVideos, encoded: list[str], tmp_path: Path
) -> None:
    add(own)
    first = own.text_files()
    encoded.clear()
    other = make_text_encoder(tmp_path / "other", SENTENCES, seed=1)
    for changes in ({"layer": -2}, {"encoder": other}, {"special_tokens": "drop"}):
        add(own, **changes)
        assert len(encoded) == 32
        encoded.clear()
        assert options_of(own).text_feat_path.parent.name.startswith("TextData_")
    now = own.text_files()
    assert all(now[name] == content for name, content in first.items() if name.startswith("TextData/"))
    add(own)  # as at first
    assert encoded == []
    assert options_of(own).text_feat_path.parent.name == "TextData"


def test_captions_that_someone_edited_are_encoded_again(own: OwnVideos, encoded: list[str]) -> None:
    add(own)
    path = own.folder / "TextData" / "minetrain.caption.txt"
    path.write_text(path.read_text().replace("opens", "shuts"))
    encoded.clear()
    add(own)
    assert len(encoded) == 32


class Killed(BaseException):
    pass


def kill(*_: Any, **__: Any) -> Any:
    raise Killed


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
@pytest.mark.parametrize(
    "step", ["write_text_files", "write_vocabularies", "replace_folder", "move", "finish", "update_yaml"]
)
def test_a_kill_leaves_the_old_dataset_or_the_new(
    own: OwnVideos, encoded: list[str], monkeypatch: pytest.MonkeyPatch, step: str, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(disk, "_exchange", lambda one, other: False)
    add(own)
    old = own.text_files()
    own.write_table([(video_id, f"{SENTENCES[index]} twice") for index, video_id in enumerate(own.ids)])
    encoded.clear()
    with monkeypatch.context() as patch:
        if step == "move":
            moves = iter([disk.move, *[kill] * 5])
            patch.setattr(disk, "move", lambda *paths: next(moves)(*paths))
        elif step == "finish":
            finish = finish_interrupted
            calls = iter([finish, kill])
            patch.setattr(dataset, "finish_interrupted", lambda *given: next(calls)(*given))
        else:
            patch.setattr(dataset, step, kill)
        if step == "move" and exchange:
            add(own)  # there is no second step
        else:
            with pytest.raises(Killed):
                add(own)
    if not (step == "move" and not exchange):
        now = own.text_files()
        is_new = step in ("move", "finish", "update_yaml")
        assert all(now[name] == content for name, content in old.items()) != is_new
        assert all(text.endswith(" twice") == is_new for text in stored(own))
    encoded.clear()
    add(own)
    assert encoded == []  # they were encoded before
    assert all(text.endswith(" twice") for text in stored(own))
    assert {path.name for path in own.folder.iterdir()} == {"FeatureData", "TextData", "mine.yaml", ".captions.lock"}


def test_a_kill_while_encoding_loses_one_part(
    own: OwnVideos, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utils.captions.tokens._SENTENCES_PER_PART", 10)
    encode = TextEncoder.encode
    with monkeypatch.context() as patch:
        calls = iter([encode, encode, kill])
        patch.setattr(TextEncoder, "encode", lambda *given: next(calls)(*given))
        with pytest.raises(Killed):
            add(own)
    parts = sorted((own.folder / ".TextData.parts").iterdir())
    assert len(parts) == 2
    parts[0].write_bytes(parts[0].read_bytes()[:-1])  # damaged
    encoded.clear()
    add(own)
    assert len(encoded) == 22
    encoder = TextEncoder(own.encoder, 32, 60, torch.device("cpu"))
    for text, rows in list(stored(own).items())[::7]:
        assert torch.allclose(encoder.encode([text]).values, rows, atol=1e-5)


def test_without_a_tagger_there_are_no_vocabularies(own: OwnVideos) -> None:
    add(own)
    lines = add_captions(own.settings(), lambda: None)
    assert lines[-1].startswith("no vocabularies for --neg_query_loss: spaCy or its English model is not installed; ")
    assert f"python utils/make_vocabularies.py --dataset_name mine --root_path {own.root}" in lines[-1]
    assert not list((own.folder / "TextData").glob("*.json"))


def shrink(own: OwnVideos) -> dict[str, Any]:
    folder = shutil.copytree(own.encoder, own.root / "no width")
    (folder / "config.json").write_text("{}")
    return {"encoder": folder}


def not_ours(own: OwnVideos) -> dict[str, Any]:
    (own.folder / "TextData").mkdir()
    return {}


@pytest.mark.parametrize(("change", "message"), [
    (lambda own: {"encoder": own.root / "nowhere"}, "nowhere: no such folder, expected a text encoder"),
    (lambda own: {"layer": 7}, "--text_layer 7: .* has 2 layers"),
    (lambda own: {"features": own.root / "f.hdf5"}, r"f\.hdf5: no such file, expected video features"),
    (shrink, r"no width: config\.json has no hidden_size"),
    (not_ours, "TextData: exists, and roberta_mine_query_feat.hdf5 in it was not written by this program"),
])  # fmt: skip
def test_what_is_refused(own: OwnVideos, change: Callable[[OwnVideos], dict[str, Any]], message: str) -> None:
    changes = change(own)
    before = own.text_files()
    with pytest.raises(InputError, match=message):
        add(own, **changes)
    assert own.text_files() == before


def test_names_of_configs_and_a_second_process_are_refused(own: OwnVideos) -> None:
    settings = own.settings()
    object.__setattr__(settings, "name", "charades")
    with pytest.raises(InputError, match="--dataset_name charades: a dataset of configs/, expected a new name"):
        add_captions(settings, lambda: fake_tagger)
    with (
        exclusive_lock(own.folder / ".captions.lock", ""),
        pytest.raises(InputError, match="another process adds sentences"),
    ):
        add(own)


def test_a_small_disk_is_refused_before_encoding(
    own: OwnVideos, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utils.captions.tokens.free_bytes", lambda folder: 1000.0)
    with pytest.raises(
        InputError, match=r"mine_i3d: the token features need .* of disk while they are made, 1000 bytes"
    ):
        add(own)
    assert encoded == []
