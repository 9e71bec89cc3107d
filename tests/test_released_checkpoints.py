"""Checkpoints in the released form, with nothing but `--only_eval --eval_ckpt`: the scores of the published options."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from method import search
from method.config.options import read_options
from method.data.preprocessing import preprocess_query, preprocess_stream
from method.data.ragged import Ragged
from method.model.architecture import Architecture
from method.model.branch_spec import two_branches
from method.runtime.files import read_json
from method.training.checkpoint_file import write_checkpoint
from tests.helpers import reference_model
from tests.helpers.golden_case import draw, published_weights
from tests.helpers.launching import launch, write_stub
from tests.helpers.paths import GOLDEN
from tests.helpers.small_dataset import own_log_handlers, run_evaluate, run_train
from tests.helpers.small_models import changed

PUBLISHED: dict[str, dict[str, dict[str, Any]]] = read_json(GOLDEN / "launch_options.json")
FRAMES = {"V0": (90, 128), "V1": (7, 5), "V2": (150, 131)}  # of i3d_feat and clip_feat
WORDS = {"V0#enc#0": 6, "V1#enc#0": 12, "V2#enc#0": 33}
Scores = dict[str, npt.NDArray[np.float32]]


def architecture(name: str) -> Architecture:
    """The published model, from the values of the published launcher alone."""
    o = PUBLISHED[name]["launch"]
    return Architecture(
        branches=two_branches(
            ("i3d_feat", o["visual_feat_dim"]),
            ("clip_feat", o["visual_flow_feat_dim"]),
            o["cross_attn_q"],
            o["deformable_offset_scale"],
        ),
        query_width=o["q_feat_size"],
        hidden_size=o["hidden_size"],
        heads=o["n_heads"],
        max_frames=o["max_ctx_l"],
        max_words=o["max_desc_l"],
        input_dropout=o["input_drop"],
        dropout=o["drop"],
        initializer_range=o["initializer_range"],
        fusion="deformable",
        fusion_extent="padded",
        fusion_positions=name == "charades",
        fusion_heads=o["deformable_heads"],
        offset_groups=o["deformable_offset_groups"],
        offset_count=o["deformable_offset_num"],
        offset_kernel=o["deformable_offset_kernel_size"],
        temperatures=("action", "object"),
    )


@dataclass(frozen=True)
class Released:
    """A checkpoint in the released form, and three videos with the feature widths of its dataset."""

    name: str
    root: Path
    model: Architecture
    weights: dict[str, Tensor]

    @property
    def checkpoint(self) -> Path:
        return self.root / "checkpoints" / "released.ckpt"

    def rows(self, item: str, length: int, width: int) -> npt.NDArray[np.float32]:
        return draw(f"{self.name}/{item}", (length, width))

    def write(self) -> None:
        self.checkpoint.parent.mkdir(parents=True)
        write_checkpoint(self.checkpoint, {"model": self.weights, "epoch": 41})
        options = read_options(["--dataset_name", self.name, "--root_path", str(self.root)])
        for path in (options.video_feat_path, options.text_feat_path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(options.video_feat_path, "w") as file:
            for video, lengths in FRAMES.items():
                for stream, length, width in zip(self.streams, lengths, self.widths, strict=True):
                    file[f"{video}/{stream}"] = self.rows(f"{video}/{stream}", length, width)
        with h5py.File(options.text_feat_path, "w") as file:
            for caption, length in WORDS.items():
                file[caption] = self.rows(caption, length, self.model.query_width)
        options.caption_test_txt.write_text("".join(f"{caption} a man runs\n" for caption in WORDS))
        options.caption_train_txt.write_text("T0#enc#0 a man runs\n")

    streams = ("i3d_feat", "clip_feat")

    @property
    def widths(self) -> tuple[int, int]:
        return self.model.branches["action"].width, self.model.branches["object"].width

    def expected(self, model: Architecture) -> Scores:
        """The scores of the naive implementation, in double precision."""
        naive = reference_model.NaiveModel(
            {name: weight.double() for name, weight in self.weights.items()}, model
        ).eval()
        ragged = [
            Ragged.of([preprocess_stream(self.rows(f"{v}/{s}", n[i], width), 128).double() for v, n in FRAMES.items()])
            for i, (s, width) in enumerate(zip(self.streams, self.widths, strict=True))
        ]
        queries = [preprocess_query(self.rows(c, n, model.query_width), 30).double() for c, n in WORDS.items()]
        with torch.no_grad():
            keys = naive.encode_videos(*ragged)
            words, mask = reference_model.pad(queries)
            found = {
                name: reference_model.scores(*keys[name], naive.encode_queries(suffix, words, mask))[0]
                for name, suffix in (("action", ""), ("object", "_phrase"))
            }
        found["fused"] = (found["action"] + found["object"]) / 2
        return {name: scores.float().numpy() for name, scores in found.items()}


@pytest.fixture(scope="module", params=PUBLISHED)
def released(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Released:
    name = request.param
    case = Released(name, tmp_path_factory.mktemp(name), architecture(name), published_weights(f"launch_{name}"))
    case.write()
    return case


def scores_of(run: Path) -> Scores:
    with np.load(run / "scores.npz") as file:
        assert (file["query_ids"].tolist(), file["video_ids"].tolist()) == (list(WORDS), list(FRAMES))
        return {name: file[name] for name in ("action", "object", "fused")}


def test_every_way_gives_the_scores_of_the_published_options(
    released: Released, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, other = (
        released.expected(model) for model in (released.model, changed(released.model, offset_scale=12.0))
    )
    assert np.abs(expected["action"] - other["action"]).max() > 0.01  # what another value would have done

    given = ["--only_eval", "--eval_ckpt", "checkpoints/released.ckpt"]
    stub = write_stub(tmp_path)
    ((_, *launched),) = launch(stub, f"do_{released.name}.sh", *given, ROOT_PATH=str(released.root))
    output = ["--save_scores", "--device", "-1", "--num_workers", "0"]
    with caplog.at_level(logging.INFO):
        run = run_train([*launched, *output])
    assumed = [message for message in caplog.messages if "do not record" in message]
    assert len(assumed) == 1
    scale = PUBLISHED[released.name]["launch"]["deformable_offset_scale"]
    assert f"--n_heads 4 --deformable_heads 8 --deformable_offset_scale {scale}.0 --cross_attn_q i3d_q" in assumed[0]
    bare = ["--dataset_name", released.name, "--root_path", str(released.root), *given[1:]]
    for found in (scores_of(run), scores_of(run_evaluate([*bare, *output]))):
        for branch in expected:
            np.testing.assert_allclose(found[branch], expected[branch], atol=1e-4, err_msg=branch)

    with own_log_handlers():
        search.main([*bare, *output[1:], "--query_id", "V2#enc#0", "--json"])
    answer = json.loads(capsys.readouterr().out)
    own = {hit["video_id"]: hit["scores"] for hit in answer["results"]}
    for branch in expected:
        np.testing.assert_allclose([own[video][branch] for video in FRAMES], expected[branch][2], atol=1e-4)
