"""A folder of videos searched by one command: small video files, CLIP and I3D with random weights."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from flask import Flask
from torch.nn.functional import normalize

from method.config.own_dataset import own_yaml, update_yaml
from method.runtime.errors import InputError
from method.text.clip import ClipTextEncoder
from method.training.checkpoint import model_content
from method.training.checkpoint_file import write_checkpoint
from tests.helpers.paths import REPOSITORY
from tests.helpers.small_clip import WIDTH, make_clip
from tests.helpers.small_dataset import own_log_handlers
from tests.helpers.small_i3d import write_small_i3d
from tests.helpers.small_models import SMALL, lively_model
from tests.helpers.small_videos import write_video
from tests.helpers.tiny_text_encoder import make_text_encoder
from utils import download_encoders, search_videos

SENTENCE = "a person opens the door"
I3D_WIDTH = 64


class Collection:
    """Three videos in a folder, and encoders in the place where they are downloaded to."""

    def __init__(self, root: Path) -> None:
        self.root, self.videos = root, root / "some" / "videos"
        self.clip = make_clip(root / "checkpoints" / "clip-vit-base-patch32")
        for number in range(3):
            write_video(
                self.videos / f"clip {number}.mp4", range(0, 900 + 300 * number, 150), size=(64, 64 + 16 * number)
            )

    def search(self, *words: str, videos: Path | None = None) -> None:
        given = ["--root_path", str(self.root), "--device", "-1", "--num_workers", "0"]
        with own_log_handlers():
            search_videos.main([str(videos or self.videos), *words, *given])

    def features(self) -> dict[str, Path]:
        return {path.parts[-3]: path for path in (self.root / "dataset").rglob("*.hdf5")}


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    return Collection(tmp_path)


def answer(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def found(capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    return {hit["video_id"]: hit["score"] for hit in answer(capsys)["results"]}


def expected_scores(clip: Path, features: Path) -> dict[str, float]:
    """The largest cosine of a frame of each video and the sentence."""
    (text,) = normalize(ClipTextEncoder(clip, torch.device("cpu")).encode([SENTENCE]), dim=1)
    with h5py.File(features, locking=False) as file:
        rows = {video: torch.from_numpy(file[video]["clip_feat"][()]) for video in file}
    return {video: float((normalize(own, dim=1) @ text).max()) for video, own in rows.items()}


def test_videos_are_found_by_clip_alone(
    collection: Collection, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    collection.search(SENTENCE, "--json")
    result = answer(capsys)
    ((folder, features),) = collection.features().items()
    assert re.fullmatch(r"videos_[0-9a-f]{8}_clip_i3d", folder)
    scores = expected_scores(collection.clip, features)
    assert {hit["video_id"]: hit["score"] for hit in result["results"]} == pytest.approx(scores, abs=1e-5)
    assert result["results"][0]["scores"].keys() == {"zero_shot", "fused"}
    assert all(hit["moment"]["end_seconds"] <= hit["duration"] for hit in result["results"])
    index = features.with_name(f"{features.name}.index") / "zero_shot" / "manifest.json"
    before = index.stat().st_mtime_ns, features.stat().st_mtime_ns

    caplog.clear()
    collection.search(SENTENCE, "--json")
    assert found(capsys) == pytest.approx(scores, abs=1e-5)
    assert (index.stat().st_mtime_ns, features.stat().st_mtime_ns) == before
    assert "to extract" not in caplog.text  # nothing has changed

    write_video(collection.videos / "deeper" / "new.webm", range(0, 900, 150), "libvpx", size=(64, 64))
    (collection.videos / "clip 0.mp4").unlink()
    collection.search(SENTENCE, "--json")
    assert found(capsys).keys() == {"clip 1", "clip 2", "deeper/new"}
    assert "1 added, 1 gone" in caplog.text


def test_a_video_that_cannot_be_read_stops_nothing(collection: Collection, capsys: pytest.CaptureFixture[str]) -> None:
    (collection.videos / "broken.mp4").write_bytes((collection.videos / "clip 1.mp4").read_bytes()[:200])
    with pytest.raises(SystemExit) as end:
        collection.search(SENTENCE, "--json")
    assert end.value.code == 1
    printed = capsys.readouterr()
    assert "failed: broken: " in printed.err
    assert len(json.loads(printed.out.splitlines()[-1])["results"]) == 3
    for path in collection.videos.glob("clip*"):
        path.unlink()
    with pytest.raises(InputError, match="none of its 1 videos could be read"):
        collection.search(SENTENCE, "--dataset_name", "other")


def test_a_terminated_extraction_ends_the_command(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    collection.search(SENTENCE)
    write_video(collection.videos / "new.mp4", [0, 100], size=(64, 64))

    def terminated(words: Sequence[str]) -> None:
        raise SystemExit(143)

    monkeypatch.setattr("utils.extract_features.main", terminated)
    monkeypatch.setattr("method.search.main", lambda words: pytest.fail("searched"))
    with pytest.raises(SystemExit, match="143"):
        collection.search(SENTENCE)


def test_all_videos_of_the_folder_are_searched_whichever_have_captions(
    collection: Collection, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [SENTENCE, "--json", "--dataset_name", "told"]
    collection.search(*words)
    paths = {"caption_train_txt": "train.txt", "caption_test_txt": "test.txt"}
    for number, name in enumerate(paths.values()):
        (collection.root / name).write_text(f"clip {number}#enc#0 {SENTENCE}\n")
    update_yaml(own_yaml(collection.root, "told"), paths)
    capsys.readouterr()
    collection.search(*words)
    assert found(capsys).keys() == {"clip 0", "clip 1", "clip 2"}
    collection.search(*words, "--split", "test")
    assert found(capsys).keys() == {"clip 1"}


def test_help_states_the_defaults_of_this_program(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        search_videos.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"(default: {search_videos.WEIGHT}, or 0 for a checkpoint that was trained on these videos)" in text
    assert "what to search for (default: serve a web page that plays the moments)" in text


def test_folders_of_one_name_are_kept_apart(collection: Collection, capsys: pytest.CaptureFixture[str]) -> None:
    other = collection.root / "more" / "videos"
    write_video(other / "elsewhere.mp4", range(0, 600, 100), size=(80, 96))
    for videos, ids in ((collection.videos, {"clip 0", "clip 1", "clip 2"}), (other, {"elsewhere"})):
        collection.search(SENTENCE, "--json", videos=videos)
        assert found(capsys).keys() == ids
    assert len(collection.features()) == 2
    collection.search(SENTENCE, "--json", "--dataset_name", "named", videos=other)
    assert "named_i3d" in collection.features()
    with pytest.raises(InputError, match="holds features of 1 other videos, such as 'elsewhere'"):
        collection.search(SENTENCE, "--dataset_name", "named")


@pytest.fixture
def checkpoint(collection: Collection) -> Path:
    """A checkpoint for both streams, its text encoder and I3D."""
    write_small_i3d(collection.root / "checkpoints" / "i3d" / "rgb_charades.pt")
    make_text_encoder(collection.root / "checkpoints" / "roberta-large", [SENTENCE], width=SMALL.query_width)
    path = collection.root / "m.ckpt"
    model = lively_model(action_width=I3D_WIDTH, object_width=WIDTH)
    write_checkpoint(path, model_content(model, 0, {"dataset_name": "others", "visual_feat_dim": I3D_WIDTH}))
    return path


def test_a_checkpoint_is_fused_with_clip(
    collection: Collection, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [SENTENCE, "--json", "--eval_ckpt", str(checkpoint)]
    collection.search(*words)
    fused = {hit["video_id"]: hit["scores"] for hit in answer(capsys)["results"]}
    ((folder, features),) = collection.features().items()
    assert not folder.endswith("_clip_i3d")
    collection.search(*words, "--zero_shot_weight", "0")
    model = {hit["video_id"]: hit["scores"] for hit in answer(capsys)["results"]}
    assert next(iter(model.values())).keys() == {"action", "object", "fused"}
    scores = expected_scores(collection.clip, features)
    for video, own in fused.items():
        assert own["zero_shot"] == pytest.approx(scores[video], abs=1e-5)
        assert (own["action"], own["object"]) == pytest.approx((model[video]["action"], model[video]["object"]))
        weighted = (1 - search_videos.WEIGHT) * model[video]["fused"] + search_videos.WEIGHT * own["zero_shot"]
        assert own["fused"] == pytest.approx(weighted, abs=1e-5)
    collection.search(SENTENCE, "--json")  # the features of both streams serve CLIP alone
    assert found(capsys) == pytest.approx(scores, abs=1e-5)
    assert collection.features().keys() == {folder}


def test_without_a_sentence_the_page_plays_the_moments(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Flask] = []
    monkeypatch.setattr("method.serving.web.server.serve", lambda app, host, port: served.append(app))
    collection.search()
    client = served[0].test_client()
    page = client.get("/", query_string={"q": SENTENCE})
    assert page.status_code == 200
    link = re.search(r'"(/video/clip%202[^"]*)"', page.text)
    assert link is not None
    assert client.get(link[1].split("#")[0]).data == (collection.videos / "clip 2.mp4").read_bytes()


class Downloads:
    """In the place of the downloader: copies encoders, and notes for what it was called."""

    def __init__(self, collection: Collection, fails: bool) -> None:
        self.kept = shutil.move(collection.clip, collection.root / "kept")
        self.place, self.fails, self.called = collection.clip, fails, list[list[str]]()

    def main(self, words: Sequence[str]) -> None:
        self.called.append(list(words))
        if self.fails:
            raise InputError("huggingface.co cannot be reached")
        shutil.copytree(self.kept, self.place)


def test_missing_encoders_are_downloaded(
    collection: Collection, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    downloads = Downloads(collection, fails=False)
    monkeypatch.setattr(download_encoders, "main", downloads.main)
    collection.search(SENTENCE, "--json")
    printed = capsys.readouterr()
    assert downloads.called == [["clip", "--root_path", str(collection.root)]]
    assert "missing encoders, to be downloaded once: clip (about 610 MB)" in printed.err
    assert len(json.loads(printed.out.splitlines()[-1])["results"]) == 3
    shutil.rmtree(collection.clip)  # the features are there, the sentence still has to be embedded
    collection.search(SENTENCE, "--json")
    assert len(downloads.called) == 2


def test_a_failed_download_tells_the_command(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_encoders, "main", Downloads(collection, fails=True).main)
    command = "python utils/download_encoders.py clip --root_path"
    with pytest.raises(InputError, match=rf"cannot be reached; on a machine with a network: {command}"):
        collection.search(SENTENCE)
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda _: True, "readline": lambda _: "n\n"})())
    with pytest.raises(InputError, match=rf"not downloaded; get the encoders with: {command}"):
        collection.search(SENTENCE)


@pytest.mark.parametrize(("words", "message"), [
    ([], r"VIDEO_FOLDER is missing, expected: VIDEO_FOLDER \[\"a sentence\"\] \[flags\]"),
    (["nowhere", "x"], "nowhere: no such folder, expected a folder of videos"),
    (["EMPTY", "x"], "no videos in this folder or below, expected files of .mp4, "),
    (["VIDEOS", "x", "--dataset_name", "charades"], "--dataset_name charades: a dataset of configs/"),
    (["VIDEOS", "x", "--clip_encoder", "nowhere"], "nowhere: no such folder, expected a CLIP model"),
    (["VIDEOS", "x", "--eval_ckpt", "nowhere"], "nowhere: no such file"),
    (["VIDEOS", "x", "--no_such_flag"], "no_such_flag"),
    (["VIDEOS", "x", "--root_path", "nowhere"], "--root_path .*nowhere: no such folder"),
])  # fmt: skip
def test_mistakes_are_named(words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "EMPTY").mkdir()
    write_video(tmp_path / "VIDEOS" / "a.mp4", [0, 100], size=(64, 64))
    monkeypatch.chdir(tmp_path)
    with own_log_handlers(), pytest.raises(InputError, match=message):
        search_videos.main(words)
    assert not (tmp_path / "dataset").exists()


def test_a_checkpoint_needs_its_text_encoder(collection: Collection, checkpoint: Path) -> None:
    shutil.rmtree(collection.root / "checkpoints" / "roberta-large")
    with pytest.raises(InputError, match=r"roberta-large: no such folder.*run `python utils/download_roberta.py`"):
        collection.search(SENTENCE, "--eval_ckpt", str(checkpoint))


def test_the_launcher(collection: Collection) -> None:
    command = ["bash", str(REPOSITORY / "do_search.sh"), str(collection.videos), SENTENCE, "--device", "-1", "--quiet"]
    environment = {**os.environ, "PYTHON": sys.executable, "ROOT_PATH": str(collection.root)}
    done = subprocess.run([*command, "--topk", "2"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^  1  clip \d  0\.\d{4}  \d+\.\d-\d+\.\d s of \d", done.stdout, re.MULTILINE)
