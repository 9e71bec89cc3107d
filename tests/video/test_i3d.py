"""I3D against the outputs of the published network, and the reading of weight files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from method.runtime.errors import InputError
from method.video.i3d import I3D, Unit, prepare_frame
from method.video.i3d_weights import read_weights
from tests.helpers.golden_case import draw
from tests.helpers.paths import GOLDEN
from tests.helpers.small_i3d import i3d_weights, write_small_i3d


@torch.inference_mode()
def test_features_are_those_of_the_published_network(tmp_path: Path) -> None:
    torch.save(i3d_weights(), tmp_path / "rgb_charades.pt")
    network = I3D(read_weights(tmp_path / "rgb_charades.pt"))
    assert network.width == 1024
    with np.load(GOLDEN / "i3d.npz") as file:
        expected = {int(name.split("/")[1]): file[name] for name in file.files}
    for frames, rows_ND in expected.items():
        clip = torch.from_numpy(draw(f"i3d/{frames}", (1, 3, frames, 224, 224)) / 3).clamp(-1, 1)
        np.testing.assert_allclose(network(clip)[0].numpy(), rows_ND, atol=2e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return i3d_weights(16)


@pytest.mark.parametrize("frames", [9, 37, 42])
@torch.inference_mode()
def test_pieces_of_the_first_layers_change_nothing(weights: dict[str, Tensor], frames: int) -> None:
    clip = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, frames, 224, 224), dtype=np.uint8))
    whole = I3D(weights, stem_rows=100)(clip)
    assert whole.shape == (1, -(-frames // 8) - 1, 64)
    torch.testing.assert_close(I3D(weights, stem_rows=3)(clip), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(I3D(weights)(clip.float() / 255 * 2 - 1), whole, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_half_precision_gives_the_same_direction(weights: dict[str, Tensor]) -> None:
    """Rounded after every layer, since a CPU does not pool in half precision."""
    clip = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 16, 224, 224), dtype=np.uint8))
    network = I3D(weights)
    whole = network(clip)[0]
    network.half().float()
    for unit in network.modules():
        if isinstance(unit, Unit):
            unit.register_forward_hook(lambda unit, inputs, output: output.half().float())
    rounded = network(clip)[0]
    assert not torch.equal(rounded, whole)
    assert torch.cosine_similarity(rounded, whole).min() > 0.999


@pytest.mark.parametrize(
    ("size", "shorter_side", "enlarge_only", "scaled"),
    [
        ((120, 160), 226, True, (226, 301)),
        ((240, 320), 226, True, (240, 320)),
        ((480, 360), 224, False, (299, 224)),
        ((224, 225), 224, False, (224, 225)),
    ],
)
def test_frames_are_scaled_and_cropped(
    size: tuple[int, int], shorter_side: int, enlarge_only: bool, scaled: tuple[int, int]
) -> None:
    """Against the definition: pixel centres at (i + 0.5) * old / new - 0.5, linear between the nearest two."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)

    def positions(old: int, new: int) -> tuple[Any, Any, Any]:
        at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.floor(at).astype(int)
        return low, np.minimum(low + 1, old - 1), at - low

    rows, columns = (positions(old, new) for old, new in zip(size, scaled, strict=True))
    values = image.astype(float)
    values = values[rows[0]] * (1 - rows[2])[:, None, None] + values[rows[1]] * rows[2][:, None, None]
    values = values[:, columns[0]] * (1 - columns[2])[:, None] + values[:, columns[1]] * columns[2][:, None]
    top, left = (round((length - 224) / 2) for length in scaled)
    prepared = prepare_frame(image, shorter_side, enlarge_only).numpy()
    assert np.abs(prepared - values[top : top + 224, left : left + 224]).max() < 1.1  # grey levels


def wide_input(state: dict[str, Tensor]) -> None:
    state["Conv3d_1a_7x7.conv3d.weight"] = state["Conv3d_1a_7x7.conv3d.weight"][:, :2]


def without(state: dict[str, Tensor]) -> None:
    del state["Mixed_5c.b0.bn.running_mean"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wide_input, r"Conv3d_1a_7x7.conv3d.weight has the shape \(4, 2, 7, 7, 7\), expected \(4, 3, 7, 7, 7\)"),
        (without, r"not the weights of I3D: 1 missing \(Mixed_5c.b0.bn.running_mean\) of 285 weights"),
        (lambda state: state.update(more=torch.zeros(1)), r"1 unknown \(more\)"),
        (lambda state: state["Mixed_4b.b0.bn.bias"].fill_(torch.nan), "Mixed_4b.b0.bn.bias is not finite"),
    ],
)
def test_other_weights_are_refused(change: Callable[[Any], object], message: str, tmp_path: Path) -> None:
    state = i3d_weights(16)
    change(state)
    torch.save(state, tmp_path / "i3d.pt")
    with pytest.raises(InputError, match=f"i3d.pt: .*{message}"):
        read_weights(tmp_path / "i3d.pt")


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "i3d.pt"
    with pytest.raises(InputError, match="no such file"):
        read_weights(path)
    path.write_text("no weights\n")
    with pytest.raises(InputError, match=r"not a file of I3D weights \(text, beginning 'no weights'"):
        read_weights(path)
    torch.save([1], path)
    with pytest.raises(InputError, match="a list, expected a state dict"):
        read_weights(path)
    torch.save({"a": Path()}, path)
    with pytest.raises(InputError, match="not a file of I3D weights"):
        read_weights(path)


def test_a_classifier_is_not_needed(tmp_path: Path) -> None:
    state = torch.load(write_small_i3d(tmp_path / "i3d.pt"), weights_only=True)
    torch.save({name: value for name, value in state.items() if not name.startswith("logits")}, tmp_path / "i3d.pt")
    assert "logits.conv3d.weight" not in read_weights(tmp_path / "i3d.pt")
