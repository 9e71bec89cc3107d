"""Checkpoints of ours: there and back, and what does not fit is named."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from method.errors import InputError
from method.training.checkpoint import load_model, model_content, stored_options, write_checkpoint
from tests.world import SMALL, VARIANTS, lively_model

OPTIONS = {"bsz": 5, "dataset_name": "demo", "eval_ckpt": None, "lr": 1e-3}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_ours_there_and_back(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = lively_model(**changes).train()
    write_checkpoint(tmp_path / "m.ckpt", model_content(model, 17, OPTIONS))
    # The architecture comes from the file, whatever the options say.
    loaded = load_model(tmp_path / "m.ckpt", replace(SMALL, hidden_size=32))
    assert loaded.epoch == 17
    assert loaded.options == stored_options(tmp_path / "m.ckpt") == OPTIONS
    assert loaded.model.architecture == model.architecture
    assert not loaded.model.training
    state = loaded.model.state_dict()
    assert set(state) == set(model.state_dict())
    assert all(torch.equal(weight, state[name]) for name, weight in model.state_dict().items())


def test_a_checkpoint_is_a_copy(tmp_path: Path) -> None:
    model = lively_model()
    content = model_content(model, 0, OPTIONS)
    before = content["model"]["branches.action.key.weight"].clone()
    with torch.no_grad():
        model.branch("action").key.weight.zero_()
    assert torch.equal(content["model"]["branches.action.key.weight"], before)


def test_weights_that_have_become_nan_are_not_saved() -> None:
    model = lively_model()
    with torch.no_grad():
        model.branch("object").key.weight[3, 2] = torch.nan
    with pytest.raises(InputError, match=r"epoch 4: the weights have become NaN .*branches\.object\.key\.weight"):
        model_content(model, 4, OPTIONS)


def test_half_precision_weights_are_read(tmp_path: Path) -> None:
    content = model_content(lively_model(), 0, OPTIONS)
    content["model"] = {name: weight.half() for name, weight in content["model"].items()}
    write_checkpoint(tmp_path / "m.ckpt", content)
    for name, weight in load_model(tmp_path / "m.ckpt", SMALL).model.state_dict().items():
        assert torch.equal(weight, content["model"][name].float())


def altered(**changes: Any) -> dict[str, Any]:
    content = model_content(lively_model(), 3, OPTIONS)
    for name, change in changes.items():
        if callable(change):
            change(content[name])
        elif change is None:
            del content[name]
        else:
            content[name] = change
    return content


def with_weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> dict[str, Any]:
    return altered(model=change)


KEY = "branches.action.key.weight"


@pytest.mark.parametrize(("content", "message"), [
    (with_weights(lambda w: w.pop(KEY)), f"weights do not fit the model: {KEY} is missing$"),
    (with_weights(lambda w: w.update(extra=torch.ones(1))), "weights do not fit the model: extra is not expected$"),
    (with_weights(lambda w: w.update({KEY: torch.ones(3, 16)})), rf"{KEY} is \(3, 16\), expected \(16, 16\)$"),
    (with_weights(lambda w: w.update({KEY: w[KEY] * torch.nan})), f"{KEY} holds NaN or infinity$"),
    (with_weights(lambda w: w.update({KEY: w[KEY].int()})), f"{KEY} is not a plain array of real numbers$"),
    (with_weights(lambda w: w.update({KEY: w[KEY].to(torch.complex64)})), f"{KEY} is not a plain array"),
    (with_weights(lambda w: w.update({KEY: w[KEY].to_sparse()})), f"{KEY} is not a plain array"),
    (with_weights(lambda w: w.clear()), "branches.action.frames.input_norm.weight is missing; .* is missing"),
    (altered(model=None), "expected a checkpoint with the weights under 'model'"),
    (altered(model=[1]), "expected a checkpoint with the weights under 'model'"),
    (altered(model={"a": 1}), "expected a checkpoint with the weights under 'model'"),
    (altered(model={1: torch.ones(1)}), "expected a checkpoint with the weights under 'model'"),
    (altered(epoch="x"), "expected a whole number under 'epoch', found 'x'"),
    (altered(architecture=None), "neither a published checkpoint nor one of ours"),
    (altered(architecture=[1]), "neither a published checkpoint nor one of ours"),
    (altered(architecture=lambda a: a.pop("heads")), r"architecture fields differ: \['heads'\]"),
    (altered(architecture=lambda a: a.update(hidden_size="x")), "its architecture cannot be built"),
    (altered(architecture=lambda a: a.update(hidden_size=-4)), "its architecture cannot be built"),
    (altered(architecture=lambda a: a.update(offset_groups=0)), "its architecture cannot be built"),
    (altered(options=None), "expected the options of its training under 'options'"),
    (altered(options=[1]), "expected the options of its training under 'options'"),
], ids=lambda value: value[:40] if isinstance(value, str) else "")  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    path = tmp_path / "m.ckpt"
    write_checkpoint(path, content)
    with pytest.raises(InputError, match=message) as caught:
        load_model(path, SMALL)
    assert str(caught.value).startswith(f"{path}: ")


def test_all_that_does_not_fit_is_listed(tmp_path: Path) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        for name in list(weights)[:9]:
            del weights[name]
        weights["extra"] = torch.ones(1)

    write_checkpoint(tmp_path / "m.ckpt", with_weights(spoil))
    with pytest.raises(InputError) as caught:
        load_model(tmp_path / "m.ckpt", SMALL)
    assert str(caught.value).count("is missing") == 9
    assert "extra is not expected" in str(caught.value)
