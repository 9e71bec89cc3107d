"""Models exported as folders for model hubs: written, read from a path or by name, and refused when they are forged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from huggingface_hub import ModelCard

from method import search
from method.model.architecture import Architecture
from method.runtime.errors import InputError
from method.runtime.files import read_json
from method.runtime.hub.models import find_model
from method.training.checkpoint import load_model, model_content
from method.training.checkpoint_file import write_checkpoint
from tests.helpers.golden_case import golden_architecture, published_weights
from tests.helpers.small_dataset import SmallDataset, metrics, run_evaluate
from tests.helpers.small_models import SMALL, lively_model
from tests.utils.fake_hub import FakeHub, Fault
from tests.utils.test_convert_checkpoint import convert, flags

FILES = {"model.safetensors", "config.json", "metrics.json", "README.md"}
CPU = ["--device", "-1", "--num_workers", "0"]


@pytest.fixture(scope="module")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of the finished run as a folder."""
    folder = tmp_path_factory.mktemp("exported") / "demo_model"
    convert([finished / "model.ckpt", "--safetensors", folder])
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, exported: Path) -> Iterator[FakeHub]:
    """A hub that has the exported model."""
    with FakeHub() as hub:
        hub.environment(monkeypatch)
        hub.host("us/demo", {path.name: path.read_bytes() for path in exported.iterdir()})
        yield hub


def scores_of(run: Path) -> dict[str, bytes]:
    with np.load(run / "scores.npz") as saved:
        return {name: saved[name].tobytes() for name in saved}


def test_a_folder_gives_the_scores_of_its_checkpoint(
    shared: SmallDataset, finished: Path, exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ["--root_path", str(shared.root)]
    run = run_evaluate(["--eval_ckpt", str(exported), "--save_scores", *CPU, *root])
    assert scores_of(run) == scores_of(finished)
    assert metrics(run) == metrics(finished) == metrics(exported)
    answers = {}
    for checkpoint in (exported, finished / "model.ckpt"):
        search.main(["--eval_ckpt", str(checkpoint), "--query_id", "E00#enc#0", "--json", *CPU, *root])
        answers[checkpoint] = json.loads(capsys.readouterr().out)["results"]
    assert answers[exported] == answers[finished / "model.ckpt"]


def test_nothing_in_a_folder_is_a_pickle_or_of_one_machine(
    shared: SmallDataset, exported: Path, finished: Path
) -> None:
    assert {path.name for path in exported.iterdir()} == FILES
    texts = [(exported / name).read_text() for name in FILES - {"model.safetensors"}]
    assert not [text for text in texts if str(shared.root) in text or str(Path.home()) in text]
    config = read_json(exported / "config.json")
    trained = load_model(finished / "model.ckpt", SMALL).model
    assert Architecture.from_dict(config["architecture"]) == trained.architecture
    assert config["options"]["seed"] == 7
    assert not {"root_path", "results_root", "eval_ckpt", "device"} & set(config["options"])
    found, expected = safetensors.torch.load_file(exported / "model.safetensors"), trained.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())


def test_the_card_states_what_was_measured_and_no_license_of_its_own(exported: Path, finished: Path) -> None:
    card = ModelCard.load(exported / "README.md")
    assert (card.data.license, card.data.license_name) == ("other", "not-stated")
    assert "stated no license" in card.text
    found = {result.metric_name: result.metric_value for result in card.data.eval_results or []}
    fused = metrics(finished)["fused"]
    expected = {"R@1": "r1", "R@5": "r5", "R@10": "r10", "R@100": "r100", "SumR": "sumr"}
    assert found == {name: fused[key] for name, key in expected.items()}
    assert f"| fused | {fused['r1']:.1f} |" in card.text


def test_without_metrics_the_card_states_none(tmp_path: Path, exported: Path, finished: Path) -> None:
    checkpoint = tmp_path / "model.ckpt"
    write_checkpoint(checkpoint, model_content(lively_model(), 3, {"dataset_name": "demo"}))
    shutil.copy(finished / "metrics.json", tmp_path)  # of another checkpoint
    convert([checkpoint, "--safetensors", tmp_path / "m", "--license", "cc-by-4.0"])
    assert not (tmp_path / "m" / "metrics.json").exists()
    card = ModelCard.load(tmp_path / "m" / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert card.data.eval_results is None
    assert "Not measured" in card.text
    with pytest.raises(InputError, match=r"metrics\.json: metrics of another checkpoint than .*model\.ckpt"):
        convert([checkpoint, "--safetensors", tmp_path / "n", "--metrics", finished / "metrics.json"])
    with pytest.raises(InputError, match="m: already exists"):
        convert([checkpoint, "--safetensors", tmp_path / "m"])
    for wrong in ([], ["out.ckpt", "--safetensors", "o"]):
        with pytest.raises(InputError, match="expected a target or --safetensors DIR, and not both"):
            convert([checkpoint, *wrong])
    with pytest.raises(InputError, match="--metrics and --license are for --safetensors"):
        convert([checkpoint, "out.ckpt", "--license", "mit"])


def test_a_published_checkpoint_and_the_way_back(tmp_path: Path) -> None:
    case = "activitynet_small"
    published, folder, back = tmp_path / "p.ckpt", tmp_path / "model", tmp_path / "back.ckpt"
    write_checkpoint(published, {"model": published_weights(case), "epoch": 12})
    convert([published, "--safetensors", folder, *flags(case)])
    convert([folder, back])
    models = [load_model(path, golden_architecture(case)) for path in (published, folder, back)]
    assert [loaded.epoch for loaded in models] == [12, 12, 12]
    assert len({loaded.model.architecture.fusion_extent for loaded in models}) == 1
    for loaded in models[1:]:
        state = loaded.model.state_dict()
        assert all(torch.equal(weight, state[name]) for name, weight in models[0].model.state_dict().items())
    front = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert front["datasets"] == ["activitynet"]
    assert "terms of its release apply" in (folder / "README.md").read_text()


def edited(**changes: Any) -> Callable[[Path], object]:
    """Change config.json; a change that is a function gets the value from before."""

    def change(folder: Path) -> None:
        config = read_json(folder / "config.json")
        for name, value in changes.items():
            config[name] = value(config[name]) if callable(value) else value
        (folder / "config.json").write_text(json.dumps(config))

    return change


def weights(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        edit(tensors)
        safetensors.torch.save_file(tensors, folder / "model.safetensors")

    return change


def grow(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.truncate(1 << 40)  # sparse


def pickled(folder: Path) -> None:
    torch.save({"model": {}}, folder / "model.safetensors")


FORGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "expected a checkpoint or a folder with"),
    "another's config": (edited(format="llama"), r"config\.json: format is 'llama', expected 'a3prvr"),
    "epoch": (edited(epoch=-1), "epoch is -1, expected a whole number"),
    "no options": (edited(options=[]), "expected the options of the training"),
    "no architecture": (edited(architecture=None), "expected a published checkpoint, or one with an 'architecture'"),
    "size": (edited(architecture=lambda own: own | {"hidden_size": 1 << 40}), "invalid architecture: hidden_size"),
    "larger model": (edited(architecture=lambda own: own | {"hidden_size": 1 << 18}), "weights do not fit the model"),
    "head": (edited(architecture=lambda own: own | {"head": "os.system"}), "head is 'os.system', expected one of"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors: no such file"),
    "too large": (grow, r"model\.safetensors: 1099511627776 bytes, expected at most"),
    "a pickle": (pickled, r"model\.safetensors: not a readable safetensors file"),
    "cut": (lambda folder: (folder / "model.safetensors").write_bytes(b"\x08"), "not a readable safetensors file"),
    "a weight less": (weights(lambda own: own.popitem()), "weights do not fit the model: .* is missing"),
    "a weight more": (weights(lambda own: own.update(extra=torch.zeros(1))), "extra is not expected"),
    "nan": (weights(lambda own: next(iter(own.values())).fill_(float("nan"))), "is not finite"),
    "a huge config": (lambda folder: (folder / "config.json").write_text(" " * (1 << 21)), "bytes of JSON, expected"),
}  # fmt: skip


@pytest.mark.parametrize(("forge", "message"), FORGED.values(), ids=FORGED)
def test_forged_folders_are_refused(
    tmp_path: Path, exported: Path, forge: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    forge(folder)
    with pytest.raises(InputError, match=message):
        run_evaluate(["--eval_ckpt", str(folder), *CPU])


def test_a_model_is_fetched_by_its_name_once(
    hub: FakeHub, shared: SmallDataset, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "dataset").symlink_to(shared.root / "dataset")
    arguments = ["--eval_ckpt", "us/demo", "--root_path", str(tmp_path), *CPU]
    run = run_evaluate([*arguments, "--save_scores"])
    assert scores_of(run) == scores_of(finished)
    said = capsys.readouterr()
    assert said.out == ""
    assert "us/demo at cccccccc" in said.err
    assert {path.name for path in (tmp_path / "checkpoints" / "hub" / "us--demo").glob("[!.]*")} == FILES
    hub.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    search.main([*arguments, "--query_id", "E00#enc#0", "--json"])
    assert json.loads(capsys.readouterr().out)["query"]["video_id"] == "E00"
    assert not hub.requests


def test_an_interrupted_download_goes_on(hub: FakeHub, tmp_path: Path, exported: Path) -> None:
    size = (exported / "model.safetensors").stat().st_size
    hub.hosted["us/demo"].faults["model.safetensors"] = [Fault(cut=size // 2)] + [Fault(status=503)] * 9
    with pytest.raises(InputError, match=r"503|connection"):
        find_model(Path("us/demo@main"), tmp_path)
    hub.hosted["us/demo"].faults.clear()
    folder = find_model(Path("us/demo@main"), tmp_path)
    assert (folder / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()
    kept = int((hub.ranges("model.safetensors")[-1] or "").removeprefix("bytes=").removesuffix("-"))
    assert size // 4 < kept <= size // 2


def test_what_is_there_is_no_name(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "us" / "demo").mkdir(parents=True)
    for path in ("us/demo", "us/other", "runs/model.ckpt", "a/b/c", "model", str(tmp_path / "us")):
        assert find_model(Path(path), tmp_path) == Path(path)
    assert not hub.requests


def test_names_that_lead_nowhere(hub: FakeHub, tmp_path: Path) -> None:
    hub.host("us/encoder", {"model.safetensors": b"x", "pytorch_model.bin": b"y"})
    hub.host("us/big", {"model.safetensors": b"x", "config.json": b" " * (1 << 21)})
    for name, message in (
        ("us/nothing", "us/nothing: no such model on"),
        ("us/demo@v9", "no such model, or no revision v9 of it"),
        ("us/encoder", "lacks config.json, expected a model as utils/convert_checkpoint.py"),
        ("us/big", r"us/big/config\.json: 2\.1 MB, expected at most 1\.0 MB; not fetched"),
    ):
        with pytest.raises(InputError, match=message):
            run_evaluate(["--eval_ckpt", name, "--root_path", str(tmp_path), *CPU])
    assert not list(tmp_path.rglob("*.safetensors"))
    with pytest.raises(InputError, match=r"checkpoints/nothing\.ckpt: no such file"):
        run_evaluate(["--eval_ckpt", "checkpoints/nothing.ckpt", "--root_path", str(tmp_path), *CPU])
