"""Options of the model that are off by default, from training to search."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from method import search
from method.config.architecture import make_architecture
from method.config.options import read_options
from method.data.captions import read_captions
from method.model.published import published_architecture, to_published
from method.runtime.errors import InputError, Stopped
from tests.helpers.runs import Interruption, assert_same_run, send
from tests.helpers.small_dataset import QUERY_WIDTH, SmallDataset, metrics, own_log_handlers, run_evaluate, run_train
from tests.helpers.small_models import SMALL, lively_model
from tests.helpers.tiny_text_encoder import make_text_encoder
from utils import convert_checkpoint

CLIPS = """--head clips --clip_weight 0.6 --attention gaussian --fusion_gradient --cross_attn_q double_q
    --frame_drop 0.2 --token_drop 0.2 --feature_noise 0.1 --amp bf16 --neg_query_loss both"""
QUERIES = """--query_weights --fused_loss beside --fusion_weight 0.3 --losses nce,cosine_nce,optimal_matching --ema 0.5
    --soft_targets 0.4 --soft_target_teacher average --token_drop 0.2"""
WINDOWS = "--head windows --registers 3 --no_deformable_attn --frame_drop 0.2 --feature_noise 0.1 --eval_amp bf16"


@pytest.mark.parametrize("options", [CLIPS, WINDOWS, QUERIES], ids=["clips", "windows", "query weights"])
def test_from_training_to_search(
    small: SmallDataset, options: str, interrupt: Interruption, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentences = [caption.text for caption in read_captions(small.train_txt)]
    encoder = make_text_encoder(small.root / "encoder", sentences, width=QUERY_WIDTH)
    flags = small.flags(*options.split(), "--text_encoder", str(encoder), "--save_every_steps", "1")
    whole = run_train([*flags, "--description", "whole"])
    interrupt.at(4, send(signal.SIGINT))
    with pytest.raises(Stopped):
        run_train([*flags, "--description", "stopped"])
    interrupt.over()
    assert_same_run(run_train(["--resume", str(whole.parent / "stopped"), "--device", "-1"]), whole)

    checkpoint = ["--eval_ckpt", str(whole / "model.ckpt"), "--root_path", str(small.root), "--device", "-1"]
    moments = ["--moments", str(small.write_moments(tmp_path / "moments.jsonl"))]
    report = ["--report"] if options == CLIPS else []  # drawing takes longer than everything else
    evaluated = run_evaluate([*checkpoint, *moments, "--save_scores", *report, "--description", "evaluated"])
    assert metrics(evaluated) == metrics(whole)
    with np.load(evaluated / "scores.npz") as scores:
        row = list(scores["query_ids"]).index("E00#enc#0")
        expected = dict(zip(scores["video_ids"], scores["fused"][row], strict=True))

    exported = tmp_path / "exported"
    with own_log_handlers():
        convert_checkpoint.main([str(whole / "model.ckpt"), "--safetensors", str(exported), "--root_path", "."])
    for model in (whole / "model.ckpt", exported):
        capsys.readouterr()
        search.main(["--eval_ckpt", str(model), *checkpoint[2:], "--query_id", "E00#enc#0", "--json"])
        hits = json.loads(capsys.readouterr().out)["results"]
        assert hits[0]["score"] == pytest.approx(max(expected.values()), abs=1e-5)
        for hit in hits:
            assert hit["score"] == pytest.approx(expected[hit["video_id"]], abs=1e-5)
            assert len(hit["timeline"]) <= 12  # of frames


def test_what_is_off_leaves_no_trace_in_a_checkpoint() -> None:
    """So that earlier versions read it, and what was made from earlier ones stays valid."""
    stored = make_architecture(read_options(["--dataset_name", "charades"])).as_dict()
    assert {"head", "temperatures"} <= set(stored)
    assert not {"clip_weight", "attention", "registers", "fusion_gradient", "frame_drop"} & set(stored)
    assert lively_model(registers=2).architecture.as_dict()["registers"] == 2


@pytest.mark.parametrize(
    "changes", [{"attention": "gaussian"}, {"registers": 2}, {"head": "clips"}, {"query_weights": True}], ids=str
)
def test_a_published_checkpoint_has_none_of_them(changes: dict[str, Any]) -> None:
    model = lively_model(**changes)
    with pytest.raises(InputError, match="a published checkpoint has"):
        to_published(model.state_dict(), model.architecture)
    assert published_architecture(model.architecture) == published_architecture(SMALL)


@pytest.mark.parametrize(("flags", "message"), [
    ("--clip_weight 1.5", r"--clip_weight 1\.5: expected a fraction from 0 to 1"),
    ("--registers -1", "--registers -1: expected at least 0 and at most 1048576"),
    ("--registers 2 --attention gaussian", "--registers 2: expected 0 with --attention gaussian"),
    ("--frame_drop 1", r"--frame_drop 1\.0: expected a fraction from 0 to below 1"),
    ("--token_drop nan", "--token_drop nan: expected a fraction from 0 to below 1"),
    ("--query_weights", "--query_weights True: expected two branches and --fused_loss beside it"),
    ("--feature_noise -0.1", r"--feature_noise -0\.1: expected at least 0"),
])  # fmt: skip
def test_mistakes_are_named(flags: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_options(["--dataset_name", "charades", *flags.split()])
