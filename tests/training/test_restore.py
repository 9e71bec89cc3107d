"""Restoring a training: refused when the data have changed or the state is impossible."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

from method.runtime.errors import InputError
from method.training.checkpoint_file import read_checkpoint, write_checkpoint
from tests.helpers.runs import EPOCHS, STEPS
from tests.helpers.small_dataset import SmallDataset, run_train


def test_other_features_of_the_same_lengths_are_refused(small: SmallDataset) -> None:
    run = run_train(small.flags("--n_epoch", "1", "--description", "run"))
    resume = ["--resume", str(run), "--device", "-1", "--n_epoch", "2", "--feature_cache", "off"]
    copy = small.features.with_name("copy")
    shutil.copy(small.features, copy)  # with another modification time
    copy.replace(small.features)
    with h5py.File(small.features, "r+") as file:
        kept = {video: file[video]["clip_feat"][()] for video in file}
        for video, rows in kept.items():
            file[video]["clip_feat"][...] = rows[::-1] * 2
    with pytest.raises(InputError, match=r"last\.ckpt: the captions or features have changed: features of the "):
        run_train(resume)
    state = read_checkpoint(run / "last.ckpt")
    known = {name: digest for name, digest in state["data"].items() if not name.startswith("features of the ")}
    assert known.keys() == {"training split", "evaluated split"}
    earlier = Path(shutil.copytree(run, run.parent / "earlier"))
    write_checkpoint(earlier / "last.ckpt", {**state, "data": known})  # from a version without this digest
    run_train(["--resume", str(earlier), *resume[2:]])
    with h5py.File(small.features, "r+") as file:
        for video, rows in kept.items():
            file[video]["clip_feat"][...] = rows
    assert run_train(resume) == run


def with_progress(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda state: state["progress"].update(changes)


def with_moment(change: Callable[[torch.Tensor], Any]) -> Callable[[dict[str, Any]], Any]:
    def changed(state: dict[str, Any]) -> None:
        moments = state["optimizer"]["state"][0]
        moments["first_moment"] = change(moments["first_moment"])

    return changed


def with_group(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda state: state["optimizer"]["param_groups"][0].update(changes)


NO_STATES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "epoch before the first": with_progress(epoch=-1, history=[]),
    "an epoch far away": with_progress(epoch=1 << 40),
    "epoch as text": with_progress(epoch="2"),
    "step behind the last": with_progress(step=STEPS + 1),
    "step before the first": with_progress(step=-1),
    "best epoch to come": with_progress(best_epoch=EPOCHS),
    "history of other epochs": with_progress(history=[]),
    "history of texts": with_progress(history=["a", "b", "c"]),
    "history with arrays": lambda state: state["progress"]["history"][0].update(losses=torch.ones(1)),
    "losses as text": with_progress(step=1, terms={"nce": "1"}),
    "unknown progress": with_progress(extra=1),
    "moment as text": with_moment(lambda moment: "x"),
    "moment of another shape": with_moment(lambda moment: moment[None]),
    "moment with NaN": with_moment(lambda moment: moment * torch.nan),
    "complex moment": with_moment(lambda moment: moment.to(torch.complex64)),
    "moment of whole numbers": with_moment(lambda moment: moment.int()),
    "sparse moment": with_moment(lambda moment: moment.to_sparse()),
    "moment without content": with_moment(lambda moment: moment.to("meta")),
    "more updates than steps": with_group(step=EPOCHS * STEPS + 1),
    "updates as text": with_group(step="9"),
    "another weight decay": with_group(weight_decay="0.1"),
    "no groups": lambda state: state["optimizer"].update(param_groups=[]),
    "no random numbers": lambda state: state.update(random={0: {}}),
    "random numbers as text": lambda state: state["random"][0].update(torch="x"),
}


@pytest.mark.parametrize("change", NO_STATES.values(), ids=NO_STATES)
def test_impossible_states_are_refused(finished: Path, tmp_path: Path, change: Callable[..., Any]) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "metrics.json").unlink()
    state = read_checkpoint(run / "last.ckpt")
    change(state)
    write_checkpoint(run / "last.ckpt", state)
    with pytest.raises(InputError, match=r"last\.ckpt: cannot resume from this state \(") as caught:
        run_train(["--resume", str(run), "--device", "-1"])
    assert "\n" not in str(caught.value)
