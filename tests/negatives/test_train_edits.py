"""Training runs with hard negative queries."""

from __future__ import annotations

import math
import shutil
import signal
from pathlib import Path

import pytest

from method.config.options import read_options
from method.data.captions import read_captions
from method.runtime.errors import InputError, Stopped
from method.runtime.files import read_json
from method.training.checkpoint_file import read_checkpoint
from tests.helpers.runs import Interruption, assert_same_run, send
from tests.helpers.small_dataset import (
    QUERY_WIDTH,
    SmallDataset,
    history,
    metrics,
    own_log_handlers,
    run_evaluate,
    run_train,
)
from tests.helpers.small_negatives import damage
from tests.helpers.tiny_text_encoder import make_text_encoder
from utils import cache_negatives


@pytest.fixture(scope="module")
def edits(shared: SmallDataset) -> list[str]:
    """Flags that enable hard negatives."""
    sentences = [caption.text for caption in read_captions(shared.train_txt)]
    encoder = make_text_encoder(shared.root / "encoder", sentences, width=QUERY_WIDTH)
    numbers = ("--neg_action_num", "2", "--neg_object_num", "3")
    return ["--neg_query_loss", "both", "--text_encoder", str(encoder), *numbers]


@pytest.fixture(scope="module")
def edited(shared: SmallDataset, edits: list[str]) -> Path:
    return run_train(shared.flags(*edits, "--n_epoch", "2", "--description", "edited"))


@pytest.fixture(scope="module")
def cached(shared: SmallDataset, edits: list[str]) -> list[str]:
    """Flags that enable hard negatives from a cache."""
    flags = [*edits, "--neg_cache", str(shared.root / "edits")]
    with own_log_handlers():
        cache_negatives.main(shared.flags(*flags))
    return flags


@pytest.fixture(scope="module")
def from_cache(shared: SmallDataset, cached: list[str]) -> Path:
    return run_train(shared.flags(*cached, "--n_epoch", "2", "--description", "from cache"))


TERMS = {"action/triplet", "action/nce", "object/triplet", "object/nce"}
BRANCHES = ("action", "object")
ACTION, OBJECT, OWN = (f"{branch}/negative_queries" for branch in (*BRANCHES, "own"))


@pytest.mark.parametrize(("flags", "terms"), [
    (["--neg_query_loss", "action"], {ACTION, OBJECT}),
    (["--neg_query_loss", "object", "--neg_query_loss_branch", "i3d"], {ACTION}),
    (["--neg_query_loss_branch", "clip"], {OBJECT}),
    (["--branches", "{own: {key: clip_feat, width: 6, edits: action}}"], {ACTION, OBJECT, OWN}),
    (["--no_cross_branch_fusion", "--no_phrase_action_branch"], {ACTION}),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")  # fmt: skip
def test_branches_with_the_loss(shared: SmallDataset, edits: list[str], flags: list[str], terms: set[str]) -> None:
    name = "edits" + "".join(flags)
    row = history(run_train(shared.flags(*edits, *flags, "--n_epoch", "1", "--description", name)))[0]
    assert {term for term in row["losses"] if term.endswith("negative_queries")} == terms
    assert all(math.isfinite(value) for value in row["losses"].values())


def test_training_uses_the_loss_and_evaluation_needs_no_encoder(edited: Path, edits: list[str]) -> None:
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


def test_they_may_begin_later(shared: SmallDataset, edits: list[str], one_epoch: Path) -> None:
    for way in ("--quiet", "--features_on_device"):
        given = [*edits, way, "--neg_query_start_epoch", "1"]
        before, since = history(run_train(shared.flags(*given, "--description", f"later, {way}")))
        assert before["losses"].keys() == history(one_epoch)[0]["losses"].keys()
        assert {ACTION, OBJECT} < since["losses"].keys()


def test_a_start_after_the_last_epoch_is_remarked(caplog: pytest.LogCaptureFixture) -> None:
    read_options(["--dataset_name", "charades", "--neg_query_start_epoch", "3", "--n_epoch", "3"])
    assert not caplog.messages
    read_options(
        ["--dataset_name", "charades", "--neg_query_start_epoch", "3", "--n_epoch", "3", "--neg_query_loss", "both"]
    )
    assert caplog.messages == ["--neg_query_start_epoch 3 has no effect: the last epoch is 2"]


WAYS = {"workers": ["--num_workers", "2"], "features on the device": ["--features_on_device", "--num_workers", "2"]}
SOURCES = pytest.mark.parametrize(("source", "reference"), [("edits", "edited"), ("cached", "from_cache")])


@SOURCES
@pytest.mark.parametrize("way", WAYS)
def test_the_run_does_not_depend_on_who_prepares_the_edits(
    shared: SmallDataset, source: str, reference: str, way: str, request: pytest.FixtureRequest
) -> None:
    flags, expected = request.getfixturevalue(source), request.getfixturevalue(reference)
    run = run_train(shared.flags(*flags, *WAYS[way], "--n_epoch", "2", "--description", f"{source} by {way}"))
    assert_same_run(run, expected)


@SOURCES
@pytest.mark.parametrize(("step", "workers"), [(1, 0), (4, 2)])
def test_stopped_and_resumed(
    shared: SmallDataset, source: str, reference: str, interrupt: Interruption, step: int, workers: int,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    flags, expected = request.getfixturevalue(source), request.getfixturevalue(reference)
    name, flags = f"{source} {step} {workers}", [*flags, "--num_workers", str(workers)]
    interrupt.at(step, send(signal.SIGINT))
    with pytest.raises(Stopped):
        run_train(shared.flags(*flags, "--n_epoch", "2", "--description", name))
    interrupt.over()
    run = run_train(["--resume", str(shared.results / name), "--device", "-1"])
    assert_same_run(run, expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_cache_is_an_error(shared: SmallDataset, cached: list[str], tmp_path: Path, workers: int) -> None:
    damage(shutil.copytree(cached[-1], tmp_path / "damaged"))
    flags = [*cached[:-1], str(tmp_path / "damaged"), "--num_workers", str(workers)]
    line = r"^\S*block-00000\.rows: edit \d+ is corrupt; repair it with `python utils/cache_negatives\.py` [^\n]*$"
    with pytest.raises(InputError, match=line):
        run_train(shared.flags(*flags, "--description", f"damaged{workers}"))


def test_without_any_edit_there_is_no_loss_term(shared: SmallDataset, edits: list[str]) -> None:
    """With one word per tag, nothing can be replaced."""
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


def test_a_missing_encoder_is_an_error(shared: SmallDataset, edits: list[str]) -> None:
    with pytest.raises(InputError, match=r"nowhere: .*python utils/download_roberta\.py"):
        run_train(shared.flags(*edits, "--text_encoder", "nowhere", "--description", "none"))
    assert not (shared.results / "none").exists()
