"""Zero-shot CLIP: the best cosine of a frame and the sentence, evaluated alone and fused with a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPModel

from method import search
from method.data.captions import Caption
from method.data.preprocessing import preprocess_stream
from method.runtime.errors import InputError
from method.runtime.files import read_json
from method.training.checkpoint import model_content
from method.training.checkpoint_file import write_checkpoint
from tests.helpers.small_clip import make_clip
from tests.helpers.small_dataset import WIDTHS, SmallDataset, metrics, own_log_handlers, run_evaluate, run_train
from tests.helpers.small_models import lively_model
from tests.test_own_videos import describe, set_description

FRAMES = 4  # fewer than the longest videos have, so that some are averaged
Scores = npt.NDArray[np.float32]


class World(SmallDataset):
    """A small dataset, a CLIP as wide as its `clip_feat`, and a checkpoint."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.clip = make_clip(root / "checkpoints" / "clip-vit-base-patch32", width=WIDTHS["clip_feat"])
        self.checkpoint = root / "m.ckpt"
        write_checkpoint(self.checkpoint, model_content(lively_model(), 3, {}))
        self.kept = self.test_txt.with_name(f"{self.test_txt.name}.clip.hdf5")

    def run(self, *flags: str) -> Path:
        return run_evaluate(self.flags("--max_ctx_l", str(FRAMES), "--save_scores", *flags))

    def fuse(self, *flags: str) -> Path:
        return self.run("--eval_ckpt", str(self.checkpoint), *flags)

    def sentences(self, captions: Sequence[Caption]) -> torch.Tensor:
        """Unit embeddings of captions by transformers' own model, one by one."""
        tokenizer, model = AutoTokenizer.from_pretrained(self.clip), CLIPModel.from_pretrained(self.clip).eval()
        found = []
        with torch.inference_mode():
            for own in captions:
                tokens = tokenizer([own.text], truncation=True, max_length=24, return_tensors="pt")
                found.append(model.get_text_features(**tokens).pooler_output)
        return normalize(torch.cat(found), dim=1)

    def best_cosines(self, frames: int = FRAMES) -> Scores:
        """The score of every caption and every video, in the order of the caption file, by a loop."""
        texts, rows = self.sentences(self.captions()), []
        with h5py.File(self.features, locking=False) as file:
            for video in self.videos_of(self.test_txt):
                seen = preprocess_stream(file[f"{video}/clip_feat"][()], frames)
                rows.append((texts @ normalize(seen, dim=1).t()).max(1).values)
        return torch.stack(rows, 1).numpy()

    def ranks(self, scores: Scores) -> npt.NDArray[np.int64]:
        videos = self.videos_of(self.test_txt)
        right = np.array([videos.index(caption.video_id) for caption in self.captions()])
        own = scores[np.arange(len(right)), right]
        return np.asarray((scores >= own[:, None]).sum(1))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("zero_shot"))


def scores_of(run: Path) -> dict[str, Any]:
    with np.load(run / "scores.npz") as file:
        return dict(file)


def test_scores_and_metrics_are_those_of_the_best_cosine(world: World) -> None:
    run = world.run("--zero_shot")
    scores, expected = scores_of(run), world.best_cosines()
    assert scores.keys() == {"query_ids", "video_ids", "zero_shot", "fused"}
    np.testing.assert_allclose(scores["zero_shot"], expected, atol=2e-6)
    np.testing.assert_array_equal(scores["zero_shot"], scores["fused"])
    ranks = world.ranks(scores["fused"])
    assert len(set(ranks)) > 4
    found = metrics(run)["zero_shot"]
    for k in (1, 5, 10, 100):
        assert found[f"r{k}"] == pytest.approx(100 * (ranks <= k).mean())
    assert found["map"] == pytest.approx((1 / ranks).mean(), abs=1e-6)
    content = read_json(run / "metrics.json")
    assert content["checkpoint"]["path"] == str(world.clip)
    assert (content["epoch"], content["videos"], content["queries"]) == (0, 8, 20)


def test_a_training_command_line_evaluates_it_too(world: World) -> None:
    flags = world.flags("--max_ctx_l", str(FRAMES), "--zero_shot")
    assert metrics(run_train([*flags, "--only_eval"])) == metrics(world.run("--zero_shot"))
    with pytest.raises(InputError, match="--zero_shot needs --only_eval"):
        run_train(flags)


def test_sentences_are_embedded_once(tmp_path: Path) -> None:
    world = World(tmp_path)
    first = scores_of(world.run("--zero_shot"))
    before = world.kept.stat().st_mtime_ns
    world.run("--zero_shot")
    assert world.kept.stat().st_mtime_ns == before
    world.test_txt.write_text(world.test_txt.read_text().replace("a person", "no person", 1))
    second = scores_of(world.run("--zero_shot"))["fused"]
    np.testing.assert_allclose(second, world.best_cosines(), atol=2e-6)
    changed = (abs(second - first["fused"]) > 1e-4).any(1)
    assert changed.tolist() == [True] + [False] * (len(changed) - 1)


def test_stored_features_of_sentences_need_no_clip(world: World, tmp_path: Path) -> None:
    path, captions = tmp_path / "sentences.hdf5", world.captions()
    rows = np.random.default_rng(0).standard_normal((len(captions), 1, WIDTHS["clip_feat"]), np.float32)
    with h5py.File(path, "w") as file:
        for caption, own in zip(captions, rows, strict=True):
            file[caption.id] = own
    run = world.run("--zero_shot", "--zero_shot_text", str(path), "--clip_encoder", "nowhere")
    world_scores = scores_of(run)["fused"]
    texts = normalize(torch.from_numpy(rows[:, 0]), dim=1)
    with h5py.File(world.features, locking=False) as file:
        video = world.videos_of(world.test_txt)[3]
        seen = preprocess_stream(file[f"{video}/clip_feat"][()], FRAMES)
    expected = (texts @ normalize(seen, dim=1).t()).max(1).values
    np.testing.assert_allclose(world_scores[:, 3], expected.numpy(), atol=2e-6)
    assert read_json(run / "metrics.json")["checkpoint"]["path"] == str(path)


@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_it_is_one_more_branch_beside_a_model(world: World, weight: float) -> None:
    more = ["--report"] if weight < 1 else []
    run, alone = world.fuse("--zero_shot_weight", str(weight), *more), world.fuse()
    scores, model = scores_of(run), scores_of(alone)
    for name in ("action", "object"):
        np.testing.assert_array_equal(scores[name], model[name])
    np.testing.assert_allclose(scores["zero_shot"], world.best_cosines(), atol=2e-6)
    fused = (1 - weight) * model["fused"] + weight * scores["zero_shot"]
    np.testing.assert_allclose(scores["fused"], fused, atol=1e-6)
    ranks = world.ranks(scores["fused"])
    assert metrics(run)["fused"]["r1"] == pytest.approx(100 * (ranks == 1).mean())
    if more:
        page = (run / "report" / "index.html").read_text()
        assert "zero_shot" in page
        assert "zero_shot" in next((run / "report").glob("captions.csv")).read_text()


def test_with_weight_0_nothing_is_loaded_or_changed(world: World) -> None:
    nothing = ["--clip_encoder", "nowhere", "--zero_shot_text", "nowhere.hdf5"]
    with_zero, without = scores_of(world.fuse("--zero_shot_weight", "0", *nothing)), scores_of(world.fuse())
    assert with_zero.keys() == without.keys()
    assert all(np.array_equal(with_zero[name], without[name]) for name in without)


@pytest.mark.parametrize(("flags", "message"), [
    (["--zero_shot", "--clip_encoder", "nowhere"], r"nowhere: no such folder.*download_encoders.py clip"),
    (["--zero_shot", "--clip_encoder", "WIDE"], r"clip_feat is 6 wide, and .*WIDE embeds sentences in 16 numbers"),
    (["--zero_shot", "--zero_shot_text", "TOKENS"], r"has shape .* expected \(rows, 6\)"),
    (["--zero_shot", "--zero_shot_text", "ROWS"], r"has 3 rows, expected one embedding by CLIP of the sentence"),
    (["--zero_shot", "--eval_ckpt", "m.ckpt"], "--zero_shot True: expected no checkpoint; to fuse both, --zero_shot_w"),
    (["--zero_shot_weight", "1.5"], "--zero_shot_weight 1.5: expected a fraction from 0 to 1"),
    (["--zero_shot_weight", "0.5"], "--eval_ckpt FILE or --zero_shot is missing"),
])  # fmt: skip
def test_what_cannot_be_compared_is_refused(world: World, flags: list[str], message: str, tmp_path: Path) -> None:
    make_clip(tmp_path / "WIDE")
    with h5py.File(tmp_path / "ROWS", "w") as file:
        for caption in world.captions():
            file[caption.id] = np.ones((3, WIDTHS["clip_feat"]), np.float32)
    (tmp_path / "TOKENS").symlink_to(world.texts)
    named = {name: str(tmp_path / name) for name in ("WIDE", "TOKENS", "ROWS")}
    world.kept.unlink(missing_ok=True)
    with pytest.raises(InputError, match=message):
        world.run(*(named.get(flag, flag) for flag in flags))


def test_frames_of_another_clip_are_refused(tmp_path: Path) -> None:
    world = World(tmp_path)
    describe(world.features, clip="abc")
    with pytest.raises(
        InputError, match=r"clip_feat was made by a CLIP with other weights \(SHA-256 abc0.* than .*clip"
    ):
        world.run("--zero_shot")
    set_description(world.features, None)
    world.run("--zero_shot")


@pytest.mark.parametrize("weight", [None, 0.3])
def test_a_search_scores_as_the_evaluation(
    world: World, weight: float | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    caption, videos = world.captions()[4], world.videos_of(world.test_txt)
    more = (
        ["--zero_shot"] if weight is None else ["--eval_ckpt", str(world.checkpoint), "--zero_shot_weight", str(weight)]
    )
    scores = scores_of(world.run(*more))
    flags = world.flags("--max_ctx_l", str(FRAMES), "--json", "--index_dir", str(tmp_path), *more)
    capsys.readouterr()
    with own_log_handlers():
        search.main([*flags, "--query_id", caption.id])
    answer = json.loads(capsys.readouterr().out)
    for hit in answer["results"]:
        for name, own in hit["scores"].items():
            assert own == pytest.approx(scores[name][4][videos.index(hit["video_id"])], abs=2e-6)
    assert answer["query"]["right_rank"] == world.ranks(scores["fused"])[4]
    assert (tmp_path / "zero_shot" / "manifest.json").exists()
    if weight is None:  # the caption by its words instead of its id, and more of them than CLIP reads
        with own_log_handlers():
            search.main([*flags, caption.text])
            search.main([*flags, "a person " * 30])
        first, second = map(json.loads, capsys.readouterr().out.splitlines())
        assert [hit["scores"] for hit in first["results"]] == [hit["scores"] for hit in answer["results"]]
        assert (first["note"], second["note"][:36]) == (None, "the model reads the first 24 tokens ")
