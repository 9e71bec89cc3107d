"""A checkpoint evaluated by itself: the training's own numbers, and the naive twin's for a published one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from method.config.architecture import make_architecture
from method.config.options import read_options
from method.data.features import FeatureFile
from method.data.preprocessing import preprocess_query, preprocess_stream
from method.data.ragged import Ragged
from method.model.published import to_published
from method.runtime.errors import InputError
from method.runtime.files import read_json
from method.training.checkpoint_file import write_checkpoint
from tests.helpers import reference_model
from tests.helpers.small_dataset import QUERY_WIDTH, WIDTHS, SmallDataset, metrics, run_evaluate, run_train
from tests.helpers.small_models import lively_model, naive_twin


def test_every_way_to_evaluate_gives_the_metrics_of_the_training(
    shared: SmallDataset, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = str(finished / "model.ckpt")
    alone = run_evaluate(["--eval_ckpt", checkpoint, "--device", "-1", "--save_scores"])
    only_eval = run_train(["--only_eval", "--eval_ckpt", checkpoint, "--device", "-1"])
    published_style = run_train(shared.flags("--only_eval", "--eval_ckpt", checkpoint))
    for run in (alone, only_eval, published_style):
        assert run.parent == finished.parent
        assert run != finished
        assert metrics(run) == metrics(finished)
        content, trained = read_json(run / "metrics.json"), read_json(finished / "metrics.json")
        assert content["checkpoint"]["sha256"] == trained["checkpoint"]["sha256"]
        assert (content["epoch"], content["videos"], content["queries"]) == (trained["epoch"], 8, 20)
    assert len({alone, only_eval, published_style}) == 3
    with np.load(alone / "scores.npz") as ours, np.load(finished / "scores.npz") as theirs:
        assert set(ours) == set(theirs)
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_evaluation_leaves_the_checkpoint_and_its_run_alone(finished: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in finished.rglob("*")}
    run_evaluate(["--eval_ckpt", str(finished / "model.ckpt"), "--device", "-1"])
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in finished.rglob("*")} == before


def test_flags_may_choose_how_to_evaluate(finished: Path) -> None:
    checkpoint = ["--eval_ckpt", str(finished / "model.ckpt"), "--device", "-1", "--save_scores"]
    scores = {}
    for weight in ("0", "0.25", "1"):
        run = run_evaluate([*checkpoint, "--fusion_weight", weight, "--eval_context_bsz", "8", "--eval_memory_mb", "1"])
        with np.load(run / "scores.npz") as file:
            scores[weight] = dict(file)
    action, object_ = (scores["1"][name] for name in ("action", "object"))
    np.testing.assert_array_equal(scores["0"]["fused"], object_)
    np.testing.assert_array_equal(scores["1"]["fused"], action)
    np.testing.assert_allclose(scores["0.25"]["fused"], 0.25 * action + 0.75 * object_, atol=1e-7)


@pytest.mark.parametrize("size", [1, 3, 200])
def test_published_checkpoints_give_the_scores_of_the_naive_twin(
    shared: SmallDataset, tmp_path: Path, size: int
) -> None:
    flags = shared.flags("--eval_context_bsz", str(size), "--eval_ckpt", str(tmp_path / "p.ckpt"))
    architecture = make_architecture(read_options([*flags, "--neg_query_loss", "both", "--fusion_extent", "padded"]))
    model = lively_model(**vars(architecture))
    write_checkpoint(tmp_path / "p.ckpt", {"model": to_published(model.state_dict(), architecture), "epoch": 9})
    run = run_train([*flags, "--only_eval", "--save_scores"])
    assert read_json(run / "metrics.json")["epoch"] == 9
    with np.load(run / "scores.npz") as file:
        scores = dict(file)

    twin, videos, captions = naive_twin(model), shared.videos_of(shared.test_txt), shared.captions()
    streams = {video: read_streams(shared, video) for video in videos}
    tokens, mask = reference_model.pad([read_tokens(shared, caption.id) for caption in captions])
    for name, suffix in (("action", ""), ("object", "_phrase")):
        expected = []
        for start in range(0, len(videos), size):
            batch = [streams[video] for video in videos[start : start + size]]
            with torch.no_grad():
                keys = twin.encode_videos(*(Ragged.of([pair[i] for pair in batch]) for i in (0, 1)))
                expected.append(reference_model.scores(*keys[name], twin.encode_queries(suffix, tokens, mask))[0])
        np.testing.assert_allclose(scores[name], torch.cat(expected, 1), atol=1e-5)


def read_streams(small: SmallDataset, video: str) -> tuple[torch.Tensor, torch.Tensor]:
    file = FeatureFile(small.features)
    action, object_ = (preprocess_stream(file.read(f"{video}/{key}", width), 12) for key, width in WIDTHS.items())
    return action, object_


def read_tokens(small: SmallDataset, caption: str) -> torch.Tensor:
    return preprocess_query(FeatureFile(small.texts).read(caption, QUERY_WIDTH), 5)


def test_what_the_checkpoint_decides_is_said(finished: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = ["--eval_ckpt", str(finished / "model.ckpt"), "--device", "-1"]
    run_evaluate(checkpoint)
    assert not [message for message in caplog.messages if "from the checkpoint" in message]
    run = run_evaluate([*checkpoint, "--fusion_extent", "padded", "--drop", "0.3"])
    assert "using fusion_extent=valid from the checkpoint (command line: padded)" in caplog.messages
    assert metrics(run) == metrics(finished)


def test_evaluate_needs_a_checkpoint(shared: SmallDataset) -> None:
    with pytest.raises(InputError, match="--eval_ckpt FILE is missing"):
        run_evaluate(shared.flags())
    with pytest.raises(InputError, match=r"nowhere\.ckpt: no such file"):
        run_evaluate(shared.flags("--eval_ckpt", "nowhere.ckpt"))
