"""The demo dataset: published layout, the same bytes from the same seed, whole or absent, no branch is enough."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from method.data.captions import Caption, read_captions
from method.data.features import ACTION_KEY, OBJECT_KEY, FeatureFile
from method.data.preprocessing import FloatRows
from method.runtime.errors import InputError
from method.runtime.files import read_json, write_json
from method.text.encoder import TextEncoder
from tests.helpers.poor_disk import refuse_all
from utils import make_demo_dataset
from utils.demo.language import VERBS, Event, describe, sentence
from utils.demo.world import Settings
from utils.make_demo_dataset import main, make_demo, write_dataset

SMALL = Settings(
    videos=6, val=4, seed=0, visual_feat_dim=12, visual_flow_feat_dim=10, q_feat_size=8, tiny_roberta=False
)


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def captions_of(out: Path, split: str) -> list[Caption]:
    return read_captions(out / f"dataset/demo_i3d/TextData/demo{split}.caption.txt")


def videos_of(out: Path) -> FeatureFile:
    return FeatureFile(out / "dataset/demo_i3d/FeatureData/demo_clip_i3d_numpy.hdf5")


@pytest.fixture(scope="module")
def default_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    main(["--out", str(out)])
    return out


@pytest.mark.parametrize("settings", [SMALL, replace(SMALL, tiny_roberta=True)])
def test_same_settings_give_the_same_bytes(tmp_path: Path, settings: Settings) -> None:
    assert make_demo(tmp_path / "a", settings)
    assert make_demo(tmp_path / "b", settings)
    assert make_demo(tmp_path / "c", replace(settings, seed=1))
    first, second, other = (content_of(tmp_path / name) for name in "abc")
    assert first == second
    for name in ("FeatureData/demo_clip_i3d_numpy.hdf5", "TextData/demotrain.caption.txt"):
        assert first[f"dataset/demo_i3d/{name}"] != other[f"dataset/demo_i3d/{name}"]


def test_more_videos_leave_the_first_ones_alone(tmp_path: Path) -> None:
    make_demo(tmp_path / "few", SMALL)
    make_demo(tmp_path / "many", replace(SMALL, videos=9))
    few, many = captions_of(tmp_path / "few", "train"), captions_of(tmp_path / "many", "train")
    assert many[: len(few)] == few
    video = f"{few[0].video_id}/{ACTION_KEY}"
    np.testing.assert_array_equal(
        videos_of(tmp_path / "few").read(video, 12), videos_of(tmp_path / "many").read(video, 12)
    )


def test_published_layout(default_demo: Path) -> None:
    training, evaluated = captions_of(default_demo, "train"), captions_of(default_demo, "val")
    assert len({caption.video_id for caption in training}) == 500
    assert len({caption.video_id for caption in evaluated}) == 150
    assert not {caption.video_id for caption in training} & {caption.video_id for caption in evaluated}
    captions = [*training, *evaluated]
    per_video = Counter(caption.video_id for caption in captions)
    assert min(per_video.values()) >= 2
    assert max(per_video.values()) <= 5

    videos = videos_of(default_demo)
    action_rows = videos.check((f"{video}/{ACTION_KEY}" for video in per_video), 64)
    object_rows = videos.check((f"{video}/{OBJECT_KEY}" for video in per_video), 48)
    assert sum(object_rows.values()) > 1.3 * sum(action_rows.values())  # frame rates of their own

    texts = FeatureFile(default_demo / "dataset/demo_i3d/TextData/roberta_demo_query_feat.hdf5")
    rows = texts.check((caption.id for caption in captions), 48)
    assert rows == {caption.id: len(caption.text.split()) + 2 for caption in captions}


def test_vocabulary_tags_the_words_of_the_captions(default_demo: Path) -> None:
    folder = default_demo / "dataset/demo_i3d/TextData"
    captions = {c.id: c.text for split in ("train", "val") for c in captions_of(default_demo, split)}
    endings = {"VBZ": "s", "VBG": "ing", "NNS": "s", "NN": ""}
    for kind, tags in (("action", {"VBZ", "VBG"}), ("object", {"NN", "NNS"})):
        of_caption = read_json(folder / f"demo_id_{kind}_dict.json")
        total = read_json(folder / f"demo_total_{kind}_dict.json")
        assert of_caption.keys() == captions.keys()
        assert total.keys() == tags
        for caption_id, own in of_caption.items():
            assert own
            for word, tag in own.items():
                assert re.search(rf"\b{word}\b", captions[caption_id])
                assert word in total[tag]
                assert word.endswith(endings[tag])
        assert all(len(words) == len(set(words)) > 12 for words in total.values())  # enough for 12 edits


def test_moments_lie_inside_their_videos_one_after_the_other(default_demo: Path) -> None:
    lines = (default_demo / "dataset/demo_i3d/TextData/demoval.moments.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["cap_id"] for row in rows] == [caption.id for caption in captions_of(default_demo, "val")]
    last_end, last_video = 0.0, ""
    for row in rows:
        video = row["cap_id"].split("#")[0]
        assert row["start"] >= (last_end if video == last_video else 0)
        assert row["start"] + 3 < row["end"] <= row["duration"]
        last_end, last_video = row["end"], video


def test_sentences_are_english() -> None:
    rng = np.random.default_rng(0)
    seen = [describe(Event("chef", "carry", "lamp"), rng) for _ in range(300)]
    texts = {sentence(words) for words in seen}
    assert "A chef carries the lamp." in texts
    assert "The chef is carrying a lamp." in texts
    assert "A chef is carrying an old lamp." in texts
    assert len(texts) > 80
    for text in texts:
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text, re.IGNORECASE)
        assert bool(re.search(r"\b(two|three|several|many)\b", text)) == ("lamps" in text)


def recalls_at_one(out: Path) -> dict[str, float]:
    """An observer who knows what each verb and each thing looks like on average: recall of each stream and of both."""
    moments = {
        kind: read_json(out / f"dataset/demo_i3d/TextData/demo_id_{kind}_dict.json") for kind in ("action", "object")
    }
    lemma = {form: verb for verb, forms in VERBS.items() for form in forms}
    frames = videos_of(out)
    scores = {}
    for kind, key, width in (("action", ACTION_KEY, 64), ("object", OBJECT_KEY, 48)):

        def meant(caption_id: str, kind: str = kind) -> str:
            word = list(moments[kind][caption_id])[-1]  # of the nouns the last is the thing, the first the person
            return lemma[word] if kind == "action" else word.removesuffix("s")

        seen: dict[str, list[FloatRows]] = {}
        for caption in captions_of(out, "train"):
            rows = frames.read(f"{caption.video_id}/{key}", width)
            seen.setdefault(meant(caption.id), []).append(rows.mean(axis=0))
        everything = np.mean([rows for own in seen.values() for rows in own], axis=0)
        looks = {word: np.mean(rows, axis=0) - everything for word, rows in seen.items()}
        evaluated = captions_of(out, "val")
        videos = list(dict.fromkeys(caption.video_id for caption in evaluated))
        queries = np.stack([looks[meant(caption.id)] for caption in evaluated])
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        best = []
        for video in videos:
            rows = frames.read(f"{video}/{key}", width)
            best.append((queries @ (rows / np.linalg.norm(rows, axis=1, keepdims=True)).T).max(axis=1))
        scores[kind] = np.stack(best, axis=1)
        right = np.array([videos.index(caption.video_id) for caption in evaluated])
    scores["fused"] = (scores["action"] + scores["object"]) / 2
    return {name: float((values.argmax(axis=1) == right).mean()) for name, values in scores.items()}


def test_only_both_streams_together_pick_the_video(default_demo: Path) -> None:
    recalls = recalls_at_one(default_demo)
    chance = 1 / 150
    assert recalls["action"] > 2 * chance
    assert recalls["object"] > 2 * chance
    assert recalls["fused"] > 1.5 * max(recalls["action"], recalls["object"])
    assert recalls["fused"] < 0.7


def test_a_tiny_roberta_encodes_the_captions(tmp_path: Path) -> None:
    make_demo(tmp_path, replace(SMALL, tiny_roberta=True))
    encoder = TextEncoder(tmp_path / "checkpoints/roberta-large", 8, 30, torch.device("cpu"))
    captions = captions_of(tmp_path, "val")
    encoded = encoder.encode([caption.text for caption in captions])
    texts = FeatureFile(tmp_path / "dataset/demo_i3d/TextData/roberta_demo_query_feat.hdf5")
    for caption, rows in zip(captions, encoded.values.split(encoded.layout.lengths), strict=True):
        assert len(rows) == len(caption.text.split()) + 3  # every word one token, the full stop, start and end
        np.testing.assert_allclose(texts.read(caption.id, 8), rows.numpy(), atol=1e-5)


def test_what_is_there_is_left_alone_or_replaced_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--out", str(tmp_path), "--videos", "3", "--val", "2"]
    main(arguments)
    features = tmp_path / "dataset/demo_i3d/FeatureData/demo_clip_i3d_numpy.hdf5"
    written = features.stat().st_mtime_ns, features.stat().st_ino
    main(arguments)
    assert (features.stat().st_mtime_ns, features.stat().st_ino) == written
    assert "already up to date" in capsys.readouterr().out
    main([*arguments, "--visual_feat_dim", "5"])
    with h5py.File(features) as file:
        assert file[f"demo_00000/{ACTION_KEY}"].shape[1] == 5
    assert sorted(path.name for path in (tmp_path / "dataset").iterdir()) == ["demo_i3d"]


def test_another_version_of_the_program_makes_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_demo(tmp_path, SMALL)
    assert not make_demo(tmp_path, SMALL)
    monkeypatch.setattr(make_demo_dataset, "VERSION", make_demo_dataset.VERSION + 1)
    assert make_demo(tmp_path, SMALL)


@pytest.mark.parametrize("settings", [SMALL, replace(SMALL, tiny_roberta=True)])
def test_broken_off_generation_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    make_demo(tmp_path / "whole", settings)
    make_demo(tmp_path / "broken", replace(settings, seed=9))
    before = content_of(tmp_path / "broken/dataset")

    def write_half(folder: Path, **arguments: object) -> None:
        write_dataset(folder, **arguments)  # type: ignore[arg-type]
        (folder / "TextData/demoval.caption.txt").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(make_demo_dataset, "write_dataset", write_half)
        with pytest.raises(KeyboardInterrupt):
            make_demo(tmp_path / "broken", settings)
        kept = content_of(tmp_path / "broken/dataset/demo_i3d")
        assert {f"demo_i3d/{name}": content for name, content in kept.items()} == before
    assert make_demo(tmp_path / "broken", settings)
    assert content_of(tmp_path / "broken") == content_of(tmp_path / "whole")
    assert not list((tmp_path / "broken").rglob(".*.new"))


@pytest.mark.parametrize("path", ["dataset/demo_i3d", "checkpoints/roberta-large"])
def test_folders_of_others_are_refused_and_kept(tmp_path: Path, path: str) -> None:
    (tmp_path / path).mkdir(parents=True)
    (tmp_path / path / "precious").write_text("data")
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / path}: no demo (it has no demo.json)")):
        make_demo(tmp_path, replace(SMALL, tiny_roberta=True))
    assert (tmp_path / path / "precious").read_text() == "data"
    assert sum(path.is_file() for path in tmp_path.rglob("*")) == 1


@pytest.mark.parametrize(("name", "damage"), [
    ("dataset/demo_i3d/FeatureData/demo_clip_i3d_numpy.hdf5", "lost"),
    ("dataset/demo_i3d/TextData/demoval.caption.txt", "damaged"),
    ("checkpoints/roberta-large/config.json", "lost"),
    ("dataset/demo_i3d/demo.json", "of an earlier version"),
])  # fmt: skip
def test_an_incomplete_demo_is_written_again(tmp_path: Path, name: str, damage: str) -> None:
    settings = replace(SMALL, tiny_roberta=True)
    make_demo(tmp_path, settings)
    before, path = content_of(tmp_path), tmp_path / name
    (tmp_path / "dataset" / "demo_i3d" / "FeatureData" / "of a cache").write_text("x")
    assert not make_demo(tmp_path, settings)
    if damage == "lost":
        path.unlink()
    elif damage == "damaged":
        path.write_bytes(path.read_bytes()[:-2] + b"?\n")
    else:
        write_json(path, {name: value for name, value in read_json(path).items() if name != "files"})
    assert make_demo(tmp_path, settings)
    assert content_of(tmp_path) == before
    assert not make_demo(tmp_path, settings)


def test_a_demo_on_a_poor_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_demo(tmp_path / "rich", SMALL)
    refuse_all(monkeypatch)
    for settings in (replace(SMALL, seed=1), SMALL):  # the second takes the place of the first
        assert make_demo(tmp_path / "poor", settings)
    assert content_of(tmp_path / "poor") == content_of(tmp_path / "rich")


@pytest.mark.parametrize(("flags", "message"), [
    (["--videos", "0"], "--videos 0: expected at least 1"),
    (["--seed", "-1"], "--seed -1: expected at least 0"),
    (["--tiny_roberta", "--q_feat_size", "50"], "--q_feat_size 50: expected a multiple of 4"),
])  # fmt: skip
def test_settings_that_cannot_be(tmp_path: Path, flags: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        main(["--out", str(tmp_path), *flags])
