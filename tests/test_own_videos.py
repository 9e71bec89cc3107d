"""Features of one's own videos with a model: searched without captions, and refused where their recipe does not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

from method import search
from method.config.options import read_options
from method.data.provenance import FEATURES
from method.model.published import to_published
from method.runtime.errors import InputError
from method.training.checkpoint import load_model, model_content, stored_options
from method.training.checkpoint_file import write_checkpoint
from method.training.resume import saved_options
from tests.helpers import fake_encoders
from tests.helpers.paths import REPOSITORY
from tests.helpers.search_runs import kitchen
from tests.helpers.small_dataset import WIDTHS, SmallDataset, own_log_handlers, run_evaluate, run_train
from tests.helpers.small_models import SMALL, lively_model
from tests.helpers.small_videos import write_video
from tests.helpers.tiny_text_encoder import make_text_encoder
from utils import check_dataset, extract_features

RECIPE = "charades clip_feat:c11b00000000 i3d_feat:13d000000000"


def describe(path: Path, recipe: str = "charades", i3d: str = "13d", clip: str = "c11b") -> None:
    """Let a feature file say how its features were made."""
    weights = {"i3d_feat": i3d.ljust(64, "0"), "clip_feat": clip.ljust(64, "0")}
    made = {key: {"encoder": "x", "weights_sha256": weights[key], "rate": 3, "width": WIDTHS[key]} for key in WIDTHS}
    set_description(path, json.dumps({"recipe": recipe, "recipe_digest": "", "streams": made}))


def set_description(path: Path, text: str | None) -> None:
    """Replace a feature file, which may still be open, by one with this description."""
    changed = path.with_name("changed.hdf5")
    shutil.copy(path, changed)
    with h5py.File(changed, "r+") as file:
        file.attrs.pop(FEATURES, None)
        if text is not None:
            file.attrs[FEATURES] = text
    changed.replace(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[SmallDataset, Path]:
    """A dataset whose features say their recipe, and a checkpoint trained on it."""
    data = SmallDataset(tmp_path_factory.mktemp("recipes"))
    describe(data.features)
    words = [sentence for own in kitchen().values() for sentence in own]
    make_text_encoder(data.root / "checkpoints/roberta-large", words, width=SMALL.query_width)
    return data, run_train(data.flags("--n_epoch", "1", "--description", "trained")) / "model.ckpt"


def run_search(*arguments: str) -> None:
    with own_log_handlers():
        search.main([*arguments, "--device", "-1", "--rebuild", "--json"])


PROGRAMS: dict[str, Callable[[list[str]], Any]] = {
    "evaluate": run_evaluate,
    "search": lambda arguments: run_search(*arguments, "--query_id", "E00#enc#0"),
}


def test_a_checkpoint_stores_the_recipe_of_its_features(trained: tuple[SmallDataset, Path]) -> None:
    assert (stored_options(trained[1]) or {})["feature_recipe"] == RECIPE


@pytest.mark.parametrize("program", PROGRAMS)
def test_features_of_another_recipe_are_refused(trained: tuple[SmallDataset, Path], program: str) -> None:
    (data, checkpoint), run = trained, PROGRAMS[program]
    arguments = ["--eval_ckpt", str(checkpoint)]
    run(arguments)
    describe(data.features, recipe="activitynet")
    with pytest.raises(InputError, match=r"hdf5: features of recipe activitynet, but .*model\.ckpt needs .* charades;"):
        run(arguments)
    describe(data.features, i3d="999")
    with pytest.raises(InputError, match=r"i3d_feat was made .* \(SHA-256 999000000000\.\.\.\).*\(13d000000000\.\.\."):
        run(arguments)
    set_description(data.features, None)  # as published
    run(arguments)
    set_description(data.features, "{}")
    with pytest.raises(InputError, match=r"attribute 'features' is '\{\}', expected a recipe and streams"):
        run(arguments)
    describe(data.features)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_released_checkpoint_has_the_recipe_of_its_dataset(
    trained: tuple[SmallDataset, Path], program: str, tmp_path: Path
) -> None:
    data, checkpoint = trained
    architecture = load_model(checkpoint, SMALL).model.architecture
    published = tmp_path / "published.ckpt"
    model = load_model(checkpoint, SMALL).model
    weights = model.state_dict() | {f"temperatures.{name}": torch.tensor(2.0) for name in ("action", "object")}
    torch.save({"model": to_published(weights, architecture), "epoch": 3}, published)
    arguments = data.flags("--eval_ckpt", str(published), "--feature_recipe", "activitynet")
    with pytest.raises(InputError, match=r"features of recipe charades, but .*published\.ckpt needs .* activitynet"):
        PROGRAMS[program](arguments)


def test_training_refuses_features_of_another_recipe(trained: tuple[SmallDataset, Path]) -> None:
    data, _ = trained
    with pytest.raises(InputError, match=r"features of recipe charades, but dataset demo needs .* activitynet"):
        run_train(data.flags("--feature_recipe", "activitynet"))
    with pytest.raises(InputError, match="dataset demo needs"), own_log_handlers():
        check_dataset.main(data.flags("--feature_recipe", "activitynet", "--quick"))


def test_a_resumed_run_keeps_its_recipe(trained: tuple[SmallDataset, Path]) -> None:
    data, _ = trained
    run = run_train(data.flags("--n_epoch", "1", "--description", "resumed", "--feature_recipe", "charades"))
    assert run_train(["--resume", str(run), "--n_epoch", "2"]) == run
    assert (stored_options(run / "model.ckpt") or {})["feature_recipe"] == RECIPE


@pytest.mark.parametrize(("dataset", "recipe"), [("activitynet", "activitynet"), ("demo", None)])
def test_a_run_from_before_recipes_has_that_of_its_dataset(tmp_path: Path, dataset: str, recipe: str | None) -> None:
    path = tmp_path / "model.ckpt"
    write_checkpoint(path, model_content(lively_model(), 0, {"dataset_name": dataset}))
    arguments = ["--eval_ckpt", str(path), "--config", str(REPOSITORY / "configs/demo.yaml")]
    assert read_options(arguments, saved=saved_options).feature_recipe == recipe


class Own:
    """A folder of videos with features for the search."""

    def __init__(self, data: SmallDataset, patch: pytest.MonkeyPatch, log: Path) -> None:
        self.root, self.videos = data.root, data.root / "videos"
        fake_encoders.install(patch, log)
        for number in range(5):
            self.write(f"some/video #{number}", "x" * (20 + number))

    def write(self, name: str, content: str) -> None:
        path = self.videos / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    def extract(self, name: str = "own", *flags: str) -> None:
        with own_log_handlers():
            words = ["--dataset_name", name, "--root_path", str(self.root), "--device", "-1"]
            extract_features.main([str(self.videos), *words, *flags])


@pytest.fixture
def own(trained: tuple[SmallDataset, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Own:
    return Own(trained[0], monkeypatch, tmp_path / "log")


def test_own_videos_are_searched_without_captions(
    trained: tuple[SmallDataset, Path],
    own: Own,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    own.extract()
    flags = ["--dataset_name", "own", "--root_path", str(own.root), "--eval_ckpt", str(trained[1])]
    flags += ["--index_dir", str(tmp_path / "index")]
    capsys.readouterr()
    run_search(*flags, "a person opens the door")
    answer = json.loads(capsys.readouterr().out)
    assert answer["corpus"] == {"split": "all", "videos": 5}
    assert {hit["video_id"]: hit["duration"] for hit in answer["results"]} == {
        f"some/video #{number}": (20 + number) / fake_encoders.RATE for number in range(5)
    }
    assert all(hit["moment"]["end_seconds"] <= hit["duration"] for hit in answer["results"])
    for arguments, message in (
        (["--split", "test", "a door"], "--split test: dataset own has no captions, expected all"),
        (["--query_id", "x#enc#0"], "no caption 'x#enc#0' in the dataset, which has no captions"),
    ):
        with pytest.raises(InputError, match=message):
            run_search(*flags, *arguments)
    own.write("some/video #2", "y" * 22)  # as long as before
    own.extract()
    capsys.readouterr()
    with own_log_handlers():
        search.main([*flags, "a person opens the door", "--device", "-1", "--json"])
    assert "1 replaced" in caplog.text
    again = json.loads(capsys.readouterr().out)
    scores, others = ({hit["video_id"]: hit["score"] for hit in one["results"]} for one in (answer, again))
    assert {name for name in scores if scores[name] != others[name]} == {"some/video #2"}


def test_moments_of_own_videos_are_cut(
    trained: tuple[SmallDataset, Path], own: Own, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own.extract()
    write_video(own.videos / "some" / "video #3.mp4", list(range(0, 11500, 500)))
    flags = ["--dataset_name", "own", "--root_path", str(own.root), "--eval_ckpt", str(trained[1])]
    flags += ["--index_dir", str(tmp_path / "index"), "--video_dir", str(own.videos)]
    capsys.readouterr()
    run_search(*flags, "--save_clips", str(tmp_path / "clips"), "a person opens the door")
    answer = json.loads(capsys.readouterr().out)
    (clip,) = (tmp_path / "clips").iterdir()
    for hit in answer["results"]:
        is_real = hit["video_id"] == "some/video #3"
        assert hit["moment"]["clip"] == (str(clip) if is_real else None)
        if is_real:
            seconds = f"{hit['moment']['start_seconds']:.1f}-{hit['moment']['end_seconds']:.1f}"
            assert clip.name.endswith(f"_{seconds}.mp4")


def test_all_videos_of_a_dataset_with_captions(
    trained: tuple[SmallDataset, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_search(
        "--eval_ckpt", str(trained[1]), "--index_dir", str(tmp_path), "--split", "all", "--query_id", "E00#enc#0"
    )
    assert json.loads(capsys.readouterr().out)["corpus"] == {"split": "all", "videos": 20}


def test_own_videos_of_another_recipe_are_not_searched(trained: tuple[SmallDataset, Path], own: Own) -> None:
    own.extract("other", "--recipe", "activitynet")
    with pytest.raises(InputError, match=r"features of recipe activitynet, but .* needs features of recipe charades"):
        run_search("--dataset_name", "other", "--root_path", str(own.root), "--eval_ckpt", str(trained[1]), "a door")


@pytest.mark.parametrize("streams", [["clip_feat"], ["i3d_feat"], ["i3d_feat", "clip_feat"]])
def test_features_and_sentences_by_one_command(
    own: Own, streams: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract_features, "find_tagger", lambda model: None)
    own.videos = tmp_path / "videos"
    for number in range(4):
        own.write(f"clips/{number}", "x" * (30 + number))
    own.write("clips/broken", "bad")
    rows = [{"video": f"clips/{number}", "sentence": "a person opens the door"} for number in (0, 1, 2, 3, "broken")]
    table = tmp_path / "sentences.jsonl"
    table.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    name = "_".join(streams)
    with pytest.raises(SystemExit):  # the sentence about the video that failed is left out
        own.extract(name, "--captions", str(table), "--streams", *streams)
    assert "training videos with" in capsys.readouterr().out
    flags = ["--dataset_name", name, "--root_path", str(own.root), "--device", "-1", "--num_workers", "0"]
    with own_log_handlers():
        check_dataset.main(flags)  # a model of these streams alone
    assert ("clip_feat" in capsys.readouterr().out) == ("clip_feat" in streams)
    if len(streams) == 1:
        small = ["--hidden_size", "16", "--bsz", "2", "--n_epoch", "1", "--eval_context_bsz", "3"]
        run = run_train([*flags, *small])
        run_search("--eval_ckpt", str(run / "model.ckpt"), "a person opens the door")


def test_sentences_that_cannot_be_added_are_refused_before_the_extraction(own: Own, tmp_path: Path) -> None:
    table = tmp_path / "sentences.csv"
    table.write_text("video,sentence\nclips/0,a person opens the door\n")
    for more, message in (
        (["--captions", "nowhere.csv"], "nowhere.csv: no such file"),
        (["--captions", str(table), "--text_encoder", "nowhere"], "nowhere: no such folder, expected a text encoder"),
    ):
        with pytest.raises(InputError, match=message):
            own.extract("never", *more)
    with pytest.raises(InputError, match="--captions: charades is a dataset of configs/"):
        own.extract("charades", "--captions", str(table))
    assert not (own.root / "dataset" / "never_i3d").exists()
