"""Checkpoints of ours: there and back, and what does not fit is named."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from method.model.architecture import Architecture
from method.runtime.errors import InputError
from method.runtime.files import sha256
from method.training.checkpoint import load_model, model_content, stored_options
from method.training.checkpoint_file import write_checkpoint
from tests.helpers.small_models import SMALL, VARIANTS, lively_model

OPTIONS = {"bsz": 5, "dataset_name": "demo", "eval_ckpt": None, "lr": 1e-3}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_round_trip(tmp_path: Path, changes: dict[str, Any]) -> None:
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


def test_weights_under_their_former_names_are_read(tmp_path: Path) -> None:
    model = lively_model(**VARIANTS["positions-valid"])
    content = model_content(model, 3, {})
    former = {
        ".tokens.": ".words.",
        ".query_positions.": ".asking_positions.",
        ".context_positions.": ".answering_positions.",
    }
    for current, old in former.items():
        assert any(current in name for name in content["model"])
        content["model"] = {name.replace(current, old): weight for name, weight in content["model"].items()}
    write_checkpoint(tmp_path / "former.ckpt", content)
    loaded = load_model(tmp_path / "former.ckpt", SMALL).model.state_dict()
    assert all(torch.equal(weight, loaded[name]) for name, weight in model.state_dict().items())


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
    with pytest.raises(InputError, match=r"epoch 4: the weights are not finite .*branches\.object\.key\.weight"):
        model_content(model, 4, OPTIONS)


def test_half_precision_weights_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = model_content(lively_model(), 0, OPTIONS)
    write_checkpoint(tmp_path / "m.ckpt", content)
    load_model(tmp_path / "m.ckpt", SMALL)
    assert not caplog.messages
    content["model"] = {name: weight.half() for name, weight in content["model"].items()}
    write_checkpoint(tmp_path / "m.ckpt", content)
    for name, weight in load_model(tmp_path / "m.ckpt", SMALL).model.state_dict().items():
        assert torch.equal(weight, content["model"][name].float())
    assert caplog.messages == [f"{tmp_path / 'm.ckpt'}: has weights in float16; they are used in float32"]


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


def as_type(kind: torch.dtype, weights: dict[str, torch.Tensor]) -> None:
    weights[KEY] = weights[KEY].to(kind)


@pytest.mark.parametrize(("content", "message"), [
    (with_weights(lambda w: w.pop(KEY)), f"weights do not fit the model: {KEY} is missing$"),
    (with_weights(lambda w: w.update(extra=torch.ones(1))), "weights do not fit the model: extra is not expected$"),
    (with_weights(lambda w: w.update({KEY: torch.ones(3, 16)})), rf"{KEY} is \(3, 16\), expected \(16, 16\)$"),
    (with_weights(lambda w: w.update({KEY: w[KEY] * torch.nan})), f"{KEY} is not finite as float32$"),
    (with_weights(lambda w: w.update({KEY: w[KEY].double() * 1e300})), f"{KEY} is not finite as float32$"),
    *(
        (with_weights(partial(as_type, kind)), rf"{KEY} is of type {kind}, expected floating point$")
        for kind in (torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn)
    ),
    (with_weights(lambda w: w.clear()), "branches.action.frames.input_norm.weight is missing; .* is missing"),
    (altered(model=None), "expected a checkpoint with the weights under 'model'"),
    (altered(model=[1]), "expected a checkpoint with the weights under 'model'"),
    (altered(model={"a": 1}), "expected a checkpoint with the weights under 'model'"),
    (altered(model={1: torch.ones(1)}), "expected a checkpoint with the weights under 'model'"),
    *(
        (altered(epoch=epoch), f"expected a whole number, at least 0, under 'epoch', found {found}$")
        for epoch, found in (("x", "'x'"), (-1, "-1"), (2.0, "2.0"), (True, "True"), ([1], "a list"))
    ),
    (altered(architecture=None), "expected a published checkpoint, or one with an 'architecture'; found neither"),
    (altered(architecture=[1]), "expected a published checkpoint, or one with an 'architecture'; found neither"),
    (altered(architecture=lambda a: a.pop("heads")), "invalid architecture: heads: missing field$"),
    (altered(options=None), "expected the options of its training under 'options'"),
    (altered(options=[1]), "expected the options of its training under 'options'"),
], ids=lambda value: value[:40] if isinstance(value, str) else "")  # fmt: skip
def test_what_does_not_fit_is_named(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    path = tmp_path / "m.ckpt"
    write_checkpoint(path, content)
    with pytest.raises(InputError, match=message) as caught:
        load_model(path, SMALL)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.filterwarnings("ignore")  # of torch, on kinds of tensors that it does not promise yet
@pytest.mark.parametrize("change", {
    "sparse": lambda weight: weight.to_sparse(),
    "sparse rows": lambda weight: weight.to_sparse_csr(),
    "without content": lambda weight: weight.to("meta"),
    "nested": lambda weight: torch.nested.nested_tensor([weight[0], weight[1, :3]]),
    "quantised": lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
    "one number many times": lambda weight: torch.ones(1, 1).expand_as(weight),
    "overlapping rows": lambda weight: torch.ones(31).as_strided((16, 16), (1, 1)),
}.values())  # fmt: skip
def test_tensors_that_are_no_arrays(tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    write_checkpoint(tmp_path / "m.ckpt", with_weights(lambda weights: weights.update({KEY: change(weights[KEY])})))
    with pytest.raises(InputError, match=rf"m\.ckpt: weights that are not dense tensors with full storage: {KEY}$"):
        load_model(tmp_path / "m.ckpt", SMALL)


SIZES = ("hidden_size", "heads", "query_width", "max_frames", "max_words", "offset_groups", "offset_count")
NO_SIZES = [0, -1, 10**9, 10**30, "384", 16.0, True, None, [16], {}]
NO_BRANCHES: list[Any] = [None, [], {"a": 3}]
NO_ARCHITECTURES: list[tuple[dict[str, Any], str]] = [
    *(({name: value}, f"{name} is .*, expected a whole number from 1 to") for name in SIZES for value in NO_SIZES),
    *(
        ({"branches": {"action": {"key": "k", "width": value}}}, r"action\.width: expected a whole number from 1 to")
        for value in (0, 10**9, "10", None)
    ),
    *(({"dropout": value}, "dropout is .*, expected a fraction") for value in (-0.1, 1.0, float("nan"), "0.1", None)),
    *(
        ({"branches": {"a": {"key": "k", "width": 1, "offset_scale": value}}}, r"a\.offset_scale: expected a number")
        for value in (-1, float("inf"), 10**400, "5")
    ),
    *(({"fusion": value}, "fusion is .*, expected one of none, attention, deformable") for value in ("x", None, [1])),
    *(({"branches": kind}, "branches are .*, expected their fields by name") for kind in NO_BRANCHES),
    ({"branches": {"a": {"key": "k"}}}, "width: missing field of branch 'a'"),
    ({"branches": {"a": {"key": "k", "width": 1, "sees": 3}}}, "'sees': no such field of branch 'a'"),
    ({"branches": {"fused": {"key": "k", "width": 1}}}, "fused: this name is reserved"),
    ({"branches": {1: {"key": "k", "width": 1}}}, "1: expected a name"),
    ({"beside": 3, "more": 4}, "'beside', 'more': no such field"),
    ({"head": 3}, "head is 3, expected the name of a head"),
    ({"fusion_extent": 3}, "fusion_extent is 3, expected one of padded, valid"),
    ({"fusion_positions": 1}, "fusion_positions is 1, expected True or False"),
    ({"temperatures": "action"}, "temperatures is 'action', expected names of branches"),
    ({"temperatures": ("action", "x")}, "temperatures are not those of the branches action, object"),
    (
        {"branches": {"object": {"key": "k", "width": 1}}, "temperatures": ()},
        "branches are object, none of which attends to another, the fusion is 'deformable'",
    ),
    ({"branches": {}, "fusion": "none"}, "branches are none"),
    ({"heads": 3}, "heads 3 do not divide the hidden_size 16"),
    ({"fusion_heads": 5}, "fusion_heads 5 do not divide"),
    ({"offset_groups": 6}, "offset_groups 6 do not divide"),
    ({"offset_kernel": 4}, "offset_kernel is 4, expected an odd number"),
    ({"fusion_positions": True, "max_frames": 129}, "max_frames are 129, expected at most 128"),
    ({"clip_weight": 2}, "clip_weight is 2, expected a fraction from 0 to 1"),
    ({"attention": "x"}, "attention is 'x', expected one of plain, gaussian"),
    ({"registers": 1.5}, "registers is 1.5, expected a whole number from 0 to 1048576"),
    ({"registers": 2, "attention": "gaussian"}, "registers are 2, expected 0 with attention 'gaussian'"),
    ({"fusion_gradient": 1}, "fusion_gradient is 1, expected True or False"),
    ({"frame_drop": 1}, "frame_drop is 1, expected a fraction from 0 to below 1"),
    ({"feature_noise": -1}, "feature_noise is -1, expected a number from 0 to 1048576"),
]


@pytest.mark.parametrize(("changes", "message"), NO_ARCHITECTURES, ids=lambda value: str(value)[:40])
def test_impossible_architectures_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        Architecture.from_dict({**SMALL.as_dict(), **changes})
    assert len(str(caught.value)) < 150


def test_a_huge_architecture_costs_no_memory(tmp_path: Path) -> None:
    """Declared sizes are compared with the weights before a model of that size is allocated."""
    write_checkpoint(tmp_path / "m.ckpt", altered(architecture=lambda a: a.update(hidden_size=1 << 20)))
    with pytest.raises(InputError, match=r"key\.weight is \(16, 16\), expected \(1048576, 1048576\)"):
        load_model(tmp_path / "m.ckpt", SMALL)


WRAPPED: dict[str, Callable[[str], str]] = {
    "DataParallel": lambda name: f"module.{name}",
    "compile": lambda name: f"_orig_mod.{name}",
    "compile of DataParallel": lambda name: f"_orig_mod.module.{name}",
    "DataParallel of compile": lambda name: f"module._orig_mod.{name}",
    "compile of a part": lambda name: name.replace("branches.action.", "branches.action._orig_mod."),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_prefixes_of_wrappers_are_removed(tmp_path: Path, wrap: Callable[[str], str]) -> None:
    model = lively_model()
    content = model_content(model, 3, OPTIONS)
    content["model"] = {wrap(name): weight for name, weight in content["model"].items()}
    write_checkpoint(tmp_path / "m.ckpt", content)
    state = load_model(tmp_path / "m.ckpt", SMALL).model.state_dict()
    assert all(torch.equal(weight, state[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("prefix", ["model.", "net.encoder.", "module.student."])
def test_an_unknown_prefix_is_named_once(tmp_path: Path, prefix: str) -> None:
    content = model_content(lively_model(), 3, OPTIONS)
    content["model"] = {prefix + name: weight for name, weight in content["model"].items()}
    write_checkpoint(tmp_path / "m.ckpt", content)
    named = prefix.removeprefix("module.")
    with pytest.raises(InputError, match=rf"m\.ckpt: the names of all \d+ weights begin with '{named}'") as caught:
        load_model(tmp_path / "m.ckpt", SMALL)
    assert len(str(caught.value)) < 300


def test_a_weight_with_and_without_a_prefix(tmp_path: Path) -> None:
    content = with_weights(lambda weights: weights.update({f"module.{KEY}": weights[KEY] + 1}))
    write_checkpoint(tmp_path / "m.ckpt", content)
    with pytest.raises(InputError, match=f"holds the weight {KEY} twice, once as module.{KEY}"):
        load_model(tmp_path / "m.ckpt", SMALL)


def before_loading(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    load = torch.load

    def acted(*arguments: Any, **named: Any) -> Any:
        act()
        return load(*arguments, **named)

    monkeypatch.setattr(torch, "load", acted)


def test_a_checkpoint_that_is_replaced_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digest, epoch and weights come from the same file when a training replaces it."""
    path, other = tmp_path / "m.ckpt", tmp_path / "other.ckpt"
    write_checkpoint(path, model_content(lively_model(), 1, OPTIONS))
    write_checkpoint(other, model_content(lively_model(), 22, OPTIONS))
    first, second = sha256(path), sha256(other)
    before_loading(monkeypatch, lambda: shutil.copy(other, tmp_path / "copy") and (tmp_path / "copy").replace(path))
    assert (loaded := load_model(path, SMALL)).epoch == 1
    assert loaded.sha256 == first
    assert (loaded := load_model(path, SMALL)).epoch == 22
    assert loaded.sha256 == second


def test_a_checkpoint_that_is_written_to_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.ckpt"
    write_checkpoint(path, model_content(lively_model(), 1, OPTIONS))
    content = path.read_bytes()
    before_loading(monkeypatch, lambda: path.write_bytes(content))
    with pytest.raises(InputError, match=r"m\.ckpt: changed while it was read; try again$"):
        load_model(path, SMALL)
