"""Whole trainings with edited captions as hard negative queries."""

from __future__ import annotations

import math
import signal
from pathlib import Path

import pytest

from method.data.captions import read_captions
from method.errors import InputError, Stopped
from method.files import read_json
from method.training.checkpoint import read_checkpoint
from tests.runs import Interruption, assert_same_run, send
from tests.small_dataset import QUERY_WIDTH, SmallDataset, history, metrics, run_evaluate, run_train
from tests.tiny_text_encoder import make_text_encoder


@pytest.fixture(scope="module")
def edits(shared: SmallDataset) -> list[str]:
    """Flags that switch the edits on."""
    sentences = [caption.text for caption in read_captions(shared.train_txt)]
    encoder = make_text_encoder(shared.root / "encoder", sentences, width=QUERY_WIDTH)
    return [
        "--neg_query_loss",
        "both",
        "--text_encoder",
        str(encoder),
        "--neg_action_num",
        "2",
        "--neg_object_num",
        "3",
    ]


@pytest.fixture(scope="module")
def edited(shared: SmallDataset, edits: list[str]) -> Path:
    return run_train(shared.flags(*edits, "--n_epoch", "2", "--description", "edited"))


TERMS = {"action/triplet", "action/nce", "object/triplet", "object/nce"}
BRANCHES = ("action", "object")
ACTION, OBJECT = "action/negative_queries", "object/negative_queries"


@pytest.mark.parametrize(("flags", "terms"), [
    (["--neg_query_loss", "action"], {ACTION, OBJECT}),
    (["--neg_query_loss", "object", "--neg_query_loss_branch", "i3d"], {ACTION}),
    (["--neg_query_loss_branch", "clip"], {OBJECT}),
    (["--no_cross_branch_fusion", "--no_phrase_action_branch"], {ACTION}),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")  # fmt: skip
def test_branches_with_the_loss(shared: SmallDataset, edits: list[str], flags: list[str], terms: set[str]) -> None:
    name = "edits" + "".join(flags)
    row = history(run_train(shared.flags(*edits, *flags, "--n_epoch", "1", "--description", name)))[0]
    assert {term for term in row["losses"] if term not in TERMS} == terms
    assert all(math.isfinite(value) for value in row["losses"].values())


def test_the_loss_is_trained_and_evaluation_needs_no_encoder(edited: Path, edits: list[str]) -> None:
    assert all({ACTION, OBJECT} < set(row["losses"]) for row in history(edited))
    weights = read_checkpoint(edited / "model.ckpt")["model"]
    assert {name for name in weights if "temperature" in name} == {"temperatures.action", "temperatures.object"}
    assert all(weights[f"temperatures.{branch}"].item() != pytest.approx(1 / 0.07, abs=1e-6) for branch in BRANCHES)
    encoder = Path(edits[3])
    hidden = encoder.rename(encoder.with_name("hidden"))
    try:
        alone = run_evaluate(["--eval_ckpt", str(edited / "model.ckpt"), "--device", "-1"])
    finally:
        hidden.rename(encoder)
    assert metrics(alone) == metrics(edited)
    assert read_json(alone / "opt.json")["neg_query_loss"] == "both"


@pytest.mark.parametrize("step", [1, 3])
def test_stopped_and_resumed(
    shared: SmallDataset, edits: list[str], edited: Path, interrupt: Interruption, step: int
) -> None:
    interrupt.at(step, send(signal.SIGINT))
    with pytest.raises(Stopped):
        run_train(shared.flags(*edits, "--n_epoch", "2", "--description", f"edits{step}"))
    interrupt.over()
    run = run_train(["--resume", str(shared.results / f"edits{step}"), "--device", "-1"])
    assert_same_run(run, edited)


def test_captions_that_cannot_be_edited_are_left_out(shared: SmallDataset, edits: list[str]) -> None:
    """A vocabulary whose tags have one word each: no edit anywhere, and the loss has no such term."""
    flags = []
    for kind, tag, word in (("action", "VBZ", "opens"), ("object", "NN", "door")):
        path = shared.root / f"total_{kind}.json"
        path.write_text(f'{{"{tag}": ["{word}"], "XX": ["unused", "words"]}}')
        flags += [f"--total_{kind}_dict", str(path)]
        ids = shared.root / f"ids_{kind}.json"
        ids.write_text(f'{{"T00#enc#0": {{"{word}": "{tag}"}}}}')
        flags += [f"--id_{kind}_dict", str(ids)]
    run = run_train(shared.flags(*edits, *flags, "--n_epoch", "1", "--description", "no edits"))
    assert set(history(run)[0]["losses"]) == TERMS


def test_no_encoder(shared: SmallDataset, edits: list[str]) -> None:
    with pytest.raises(InputError, match=r"nowhere: .*python utils/download_roberta\.py"):
        run_train(shared.flags(*edits, "--text_encoder", "nowhere", "--description", "none"))
    assert not (shared.results / "none").exists()
