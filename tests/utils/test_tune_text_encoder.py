"""Making a text encoder like TVR's: from the base encoder to features as TVR's YAML file describes them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer, RobertaConfig, RobertaForMaskedLM

from method.config.options import read_options
from method.config.settings import encoder_settings
from method.runtime.errors import InputError
from method.runtime.files import write_text
from method.text.encoder import open_text_encoder
from tests.helpers.small_negatives import make_captions
from tests.helpers.tiny_text_encoder import make_text_encoder
from utils import check_dataset, tune_text_encoder

WIDTH = 768  # of TVR's token features, and of roberta-base
CAPTIONS = make_captions(48)
TRAINING, EVALUATED = CAPTIONS[:40], CAPTIONS[40:]
FLAGS = ("--device", "-1", "--bsz", "8", "--epochs", "6", "--lr", "1e-3")


class World:
    """TVR's files and a small base encoder in the places where they are expected, and what tuning it printed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = root / "dataset" / "tvr_i3d"
        for name, captions in (("train", TRAINING), ("val", EVALUATED)):
            lines = "".join(f"{caption.id} {caption.text}\n" for caption in captions)
            write_text(self.data / "TextData" / f"tvr{name}.caption.txt", lines)
        self.base = make_text_encoder(
            root / "checkpoints" / "roberta-base", [caption.text for caption in TRAINING], width=WIDTH
        )
        config = RobertaConfig.from_pretrained(self.base, initializer_range=0.02)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            RobertaForMaskedLM(config).save_pretrained(self.base)
        self.tuned = root / "checkpoints" / "roberta-base-tvr"

    def tune(self, *more: str) -> None:
        tune_text_encoder.main(["tvr", "--root_path", str(self.root), *FLAGS, *more])

    def write_features(self) -> None:
        """Token features of all captions as TVR's were made, by transformers alone, and random ones of the videos."""
        tokenizer, model = AutoTokenizer.from_pretrained(self.tuned), AutoModel.from_pretrained(self.tuned).eval()
        with h5py.File(self.data / "TextData" / "roberta_tvr_query_feat.hdf5", "w") as file, torch.no_grad():
            for caption in CAPTIONS:
                ids = tokenizer(caption.text, return_tensors="pt")
                file[caption.id] = model(**ids, output_hidden_states=True).hidden_states[-2][0, 1:-1].numpy()
        path = self.data / "FeatureData" / "tvr_clip_i3d_numpy.hdf5"
        path.parent.mkdir()
        with h5py.File(path, "w") as file:
            for video_id in {caption.video_id for caption in CAPTIONS}:
                file[f"{video_id}/i3d_feat"] = np.ones((2, 3072), np.float32)
                file[f"{video_id}/clip_feat"] = np.ones((2, 512), np.float32)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("tvr"))


@pytest.fixture(scope="module")
def printed(world: World) -> str:
    """What the command printed; its result is in its place from now on."""
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda line: lines.append(line))
        world.tune()
    return "\n".join(lines)


def test_the_loss_falls_and_the_result_is_called_an_approximation(printed: str) -> None:
    found = re.search(r"40 captions, masked-word loss from (\S+) to (\S+)", printed)
    assert found
    first, last = map(float, found.groups())
    assert last < 0.7 * first
    assert "an approximation: the encoder of TVR's token features was never released" in printed


@pytest.mark.usefixtures("printed")
def test_the_encoder_is_whole_and_not_the_base(world: World) -> None:
    before, after = (load_file(folder / "model.safetensors") for folder in (world.base, world.tuned))
    assert set(before) == set(after)
    assert not all(torch.equal(before[name], after[name]) for name in before)
    assert all(weight.isfinite().all() for weight in after.values())
    assert sorted(path.name for path in world.tuned.parent.iterdir()) == ["roberta-base", "roberta-base-tvr"]


@pytest.mark.usefixtures("printed")
def test_the_yaml_file_of_tvr_uses_it_as_tvr_was_made(
    world: World, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    world.write_features()
    flags = ("--root_path", str(world.root), "--device", "-1", "--num_workers", "0")
    options = read_options(["--dataset_name", "tvr", *flags])
    assert (options.text_encoder, options.text_layer, options.text_special_tokens) == (world.tuned, -2, "drop")
    with h5py.File(options.text_feat_path) as file:
        stored = torch.from_numpy(file[EVALUATED[0].id][()])
    rows = open_text_encoder(encoder_settings(options), torch.device("cpu")).encode([EVALUATED[0].text]).values
    assert torch.cosine_similarity(rows, stored).min() > 0.9999

    check_dataset.main(["tvr", *flags])
    assert f"{world.tuned}: matches the token features of 20 captions (mean cosine 1.0000)" in capsys.readouterr().out
    check_dataset.main(["tvr", *flags, "--text_layer", "-1", "--text_special_tokens", "keep"])
    assert "matches the token features" not in capsys.readouterr().out
    assert "20 of 20 captions have a different number of tokens" in caplog.text
    assert "use --text_layer -2 --text_special_tokens drop (mean cosine 1.0000)" in caplog.text
    caplog.clear()
    check_dataset.main(["tvr", *flags, "--text_encoder", str(world.base)])
    assert "mean cosine" in caplog.text
    assert "use --text_layer" not in caplog.text
    check_dataset.main(["tvr", *flags, "--text_encoder", "nowhere"])
    assert "nowhere: no text encoder to compare" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_weights(world: World) -> None:
    def weights(name: str, *more: str) -> dict[str, torch.Tensor]:
        world.tune("--epochs", "1", "--out", name, *more)
        loaded = load_file(world.root / name / "model.safetensors")
        shutil.rmtree(world.root / name)
        return loaded

    first, again, other = weights("a"), weights("b"), weights("c", "--seed", "1")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_an_encoder_without_a_head_learns_one_and_says_so(world: World, caplog: pytest.LogCaptureFixture) -> None:
    headless = make_text_encoder(world.root / "headless", ["a man opens the door"], width=WIDTH)
    world.tune("--base_encoder", "headless", "--epochs", "1", "--out", "from headless")
    assert f"{headless}: no language modelling head" in caplog.text
    options = read_options(["--dataset_name", "tvr", "--root_path", str(world.root), "--text_encoder", "from headless"])
    encoder = open_text_encoder(encoder_settings(options), torch.device("cpu"))
    assert encoder.encode(["a man opens the door"]).values.isfinite().all()


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_stops_it_leaves_nothing(world: World, monkeypatch: pytest.MonkeyPatch, stop: BaseException) -> None:
    def stopping(model: RobertaForMaskedLM, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise stop

    monkeypatch.setattr(RobertaForMaskedLM, "save_pretrained", stopping)
    before = sorted(world.root.rglob("*"))
    with pytest.raises(type(stop)):
        world.tune("--epochs", "1", "--out", "stopped")
    assert sorted(world.root.rglob("*")) == before


def in_config(**values: object) -> Callable[[Path], None]:
    def change(base: Path) -> None:
        path = base / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


@pytest.mark.parametrize(("change", "more", "named"), [
    (shutil.rmtree, (), r"base: no such folder, .*download_roberta.py --model FacebookAI/roberta-base"),
    (in_config(num_hidden_layers=3), (), "base: 16 weights missing, such as roberta.encoder.layer.2"),
    (in_config(model_type="resnet"), (), "base: cannot be loaded"),
    (None, ("--out", "checkpoints/roberta-base"), "roberta-base: already exists; .*--out"),
    (None, ("--epochs", "0"), "--epochs 0: expected at least 1"),
    (None, ("--bsz", "0"), "--bsz 0: expected at least 1"),
    (None, ("--lr", "nan"), "--lr nan: expected"),
])  # fmt: skip
def test_mistakes_are_named(
    world: World, tmp_path: Path, change: Callable[[Path], object] | None, more: tuple[str, ...], named: str
) -> None:
    if change is not None:
        shutil.copytree(world.base, tmp_path / "base")
        change(tmp_path / "base")
        more = ("--base_encoder", str(tmp_path / "base"), *more)
    with pytest.raises(InputError, match=named) as caught:
        world.tune("--out", str(tmp_path / "tuned"), *more)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "tuned").exists()


def test_a_base_of_another_width_is_refused_before_it_is_tuned(world: World, tmp_path: Path) -> None:
    make_text_encoder(tmp_path / "base", ["a man"], width=32)
    with pytest.raises(InputError, match="hidden size 32, expected 768, the width of the token features"):
        world.tune("--base_encoder", str(tmp_path / "base"), "--out", str(tmp_path / "tuned"))


def test_a_timeout_that_breaks_the_import_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "soon")
    with pytest.raises(InputError, match="HF_HUB_ETAG_TIMEOUT 'soon': expected a whole number of seconds"):
        world.tune("--out", "unused")
