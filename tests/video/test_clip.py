"""The towers of CLIP against the processor and the model of transformers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from method.runtime.errors import InputError
from method.text.clip import ClipTextEncoder
from method.video.clip import ClipImageEncoder
from method.video.container import RGB
from tests.helpers.small_clip import WIDTH, make_clip

CPU = torch.device("cpu")
SIZES = [(64, 64), (48, 64), (200, 131), (131, 200), (65, 64), (40, 333)]
SENTENCES = ["a person opens the door", "a", "", "naïve 東京?", "a very long sentence " * 9, "a person opens the door"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture(scope="module")
def model(folder: Path) -> CLIPModel:
    return CLIPModel.from_pretrained(folder).eval()


def frame(size: tuple[int, int]) -> RGB:
    """Noise over a ramp and edges."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    ramp = np.stack([rows * 255 // size[0], columns * 255 // size[1], (rows // 8 + columns // 8) % 2 * 255], -1)
    return (ramp // 2 + np.random.default_rng(0).integers(0, 128, (*size, 3))).astype(np.uint8)


@torch.inference_mode()
def test_frames_are_embedded_as_by_transformers(folder: Path, model: CLIPModel) -> None:
    processor = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    encoder = ClipImageEncoder(folder, CPU)
    frames = [frame(size) for size in SIZES]
    prepared = torch.stack([encoder.prepare(image) for image in frames])
    pixels = processor(frames, return_tensors="pt")["pixel_values"]
    back = pixels * torch.tensor(processor.image_std)[:, None, None] + torch.tensor(processor.image_mean)[:, None, None]
    assert torch.equal(prepared, (back * 255).round().to(torch.uint8))
    expected = model.get_image_features(pixel_values=pixels).pooler_output
    together = encoder.encode(prepared)
    assert together.shape == (len(SIZES), WIDTH)
    assert torch.pdist(together).min() > 0.01
    torch.testing.assert_close(together, expected, atol=2e-6, rtol=1e-5)
    alone = torch.cat([encoder.encode(one[None]) for one in prepared])
    torch.testing.assert_close(alone, together, atol=2e-6, rtol=1e-5)


@torch.inference_mode()
def test_sentences_are_embedded_as_by_transformers(folder: Path, model: CLIPModel) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoder = ClipTextEncoder(folder, CPU)
    alone = []
    for sentence in SENTENCES:
        tokens = tokenizer([sentence], truncation=True, max_length=24, return_tensors="pt")
        alone.append(model.get_text_features(**tokens).pooler_output)
    found = encoder.encode(SENTENCES)
    torch.testing.assert_close(found, torch.cat(alone), atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(found[0], found[-1], atol=2e-6, rtol=1e-5)
    assert torch.pdist(found[:5]).min() > 0.1
    assert encoder.encode([]).shape == (0, WIDTH)
    assert not found.is_inference() or torch.is_inference_mode_enabled()


def test_half_precision_gives_the_same_direction(folder: Path) -> None:
    encoder = ClipImageEncoder(folder, CPU)
    prepared = torch.stack([encoder.prepare(frame(size)) for size in SIZES])
    whole = encoder.encode(prepared)
    encoder._model.half()
    assert torch.cosine_similarity(encoder.encode(prepared), whole).min() > 0.999


def test_only_the_weights_of_a_tower_are_needed(folder: Path, tmp_path: Path) -> None:
    for tower, other, encoder in (("vision", "text", ClipImageEncoder), ("text", "vision", ClipTextEncoder)):
        copy = tmp_path / tower
        shutil.copytree(folder, copy)
        kept = {key: value for key, value in load_file(copy / "model.safetensors").items() if other not in key}
        save_file(kept, copy / "model.safetensors", metadata={"format": "pt"})
        encoder(copy, CPU)
        with pytest.raises(InputError, match="missing or unknown weights"):
            (ClipTextEncoder if tower == "vision" else ClipImageEncoder)(copy, CPU)


def change_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def run(copy: Path) -> None:
        weights = load_file(copy / "model.safetensors")
        change(weights)
        save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})

    return run


def set_config(copy: Path, **values: object) -> None:
    path = copy / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "no such folder, expected a CLIP model; run `python utils/download_encoders.py clip`"),
        (lambda copy: (copy / "config.json").unlink(), "no config.json"),
        (lambda copy: (copy / "model.safetensors").unlink(), "no model.safetensors"),
        (lambda copy: cut(copy / "model.safetensors"), "cannot be loaded as a CLIP model"),
        (lambda copy: set_config(copy, model_type="bert"), "a bert model"),
        (lambda copy: set_config(copy, projection_dim=8), "cannot be loaded as a CLIP model"),
        (
            change_weights(lambda weights: weights["visual_projection.weight"].fill_(torch.inf)),
            "weights that are not finite",
        ),
    ],
)
def test_broken_folders_are_named(change: Callable[[Path], object], message: str, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    change(copy)
    with pytest.raises(InputError, match=f"copy.*{message}"):
        ClipImageEncoder(copy, CPU)


def test_sentences_need_a_tokenizer(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for name in ("tokenizer.json", "vocab.json"):
        (copy / name).unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        ClipTextEncoder(copy, CPU)
