"""Features of a video against the networks on all its frames at once."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from method.runtime.errors import InputError
from method.runtime.files import sha256
from method.video import encode
from method.video.clip import ClipImageEncoder
from method.video.decode import Sampling, VideoError, read_frames
from method.video.encode import VideoEncoders, open_encoders
from method.video.i3d import I3D, prepare_frame
from method.video.i3d_weights import read_weights
from method.video.recipes import RECIPES, find_recipe
from tests.helpers.small_clip import WIDTH, make_clip
from tests.helpers.small_i3d import write_small_i3d
from tests.helpers.small_videos import write_video

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A CLIP folder and a weight file of I3D."""
    folder = tmp_path_factory.mktemp("encoders")
    return make_clip(folder / "clip"), write_small_i3d(folder / "i3d.pt")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty frames at ten a second."""
    return write_video(tmp_path_factory.mktemp("video") / "a.mp4", range(0, 4000, 100))


def opened(name: str, files: tuple[Path, Path]) -> VideoEncoders:
    return open_encoders(find_recipe(name), clip_folder=files[0], i3d_weights=files[1], device=CPU)


def frames(video: Path, recipe: str, rate: Fraction | None) -> Tensor:
    """All frames for I3D at once, (1, 3, T, 224, 224)."""
    seen = RECIPES[recipe].i3d_feat
    sampling = Sampling(rate, lambda image: prepare_frame(image, seen.shorter_side, seen.enlarge_only))
    return torch.stack([frame for _, frame in read_frames(video, [sampling])]).permute(3, 0, 1, 2)[None]


@torch.inference_mode()
def test_charades(files: tuple[Path, Path], video: Path) -> None:
    features = opened("charades", files).encode(video)
    network, clip = I3D(read_weights(files[1])), ClipImageEncoder(files[0], CPU)
    seen = frames(video, "charades", Fraction(24))
    assert seen.shape[2] == 96
    np.testing.assert_allclose(features["i3d_feat"], network(seen)[0], atol=1e-5, rtol=1e-5)
    assert features["i3d_feat"].shape == (11, 64)
    images = [image for _, image in read_frames(video, [Sampling(Fraction(3), clip.prepare)])]
    np.testing.assert_allclose(features["clip_feat"], clip.encode(torch.stack(images)), atol=2e-6, rtol=1e-5)
    assert features["clip_feat"].shape == (12, WIDTH)
    assert {values.dtype for values in features.values()} == {np.dtype(np.float32)}


@torch.inference_mode()
def test_activitynet(files: tuple[Path, Path], video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two windows of 16 of the 40 frames, the rest dropped, whatever the batch."""
    features = opened("activitynet", files).encode(video)
    network = I3D(read_weights(files[1]))
    seen = frames(video, "activitynet", None)
    windows = torch.cat([network(seen[:, :, start : start + 16])[0] for start in (0, 16)])
    np.testing.assert_allclose(features["i3d_feat"], windows, atol=1e-5, rtol=1e-5)
    assert features["clip_feat"].shape == (7, WIDTH)  # of 4 s at 1.875 a second
    monkeypatch.setattr(encode, "_I3D_BATCH", {"cpu": 16})
    monkeypatch.setattr(encode, "_CLIP_BATCH", {"cpu": 3})
    other = opened("activitynet", files).encode(video)
    for key, values in features.items():
        np.testing.assert_allclose(other[key], values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("count", [120, 121, 188])
@torch.inference_mode()
def test_windows_with_context_give_the_rows_of_one_pass(count: int, files: tuple[Path, Path]) -> None:
    """The context of Charades' recipe is as large as what a row sees, here with windows of 64 frames.

    The padding of the network depends on the number of frames modulo 4, so the end of a longer video is as in a pass
    over its last window alone.
    """
    recipe = replace(RECIPES["charades"].i3d_feat, window=64)
    network = I3D(read_weights(files[1]))
    clip = torch.from_numpy(np.random.default_rng(count).integers(0, 256, (count, 224, 224, 3), dtype=np.uint8))
    rows = encode._I3DRows(network, recipe, CPU)
    for frame in clip:
        rows.push(frame)
    found = torch.cat(rows.finish())
    whole = network(clip.permute(3, 0, 1, 2)[None])[0]
    assert found.shape == whole.shape == (-(-count // 8) - 1, 64)
    if count % 4 == 0:
        torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_shortest_video_has_a_row(recipe: str, files: tuple[Path, Path], tmp_path: Path) -> None:
    features = opened(recipe, files).encode(write_video(tmp_path / "a.mkv", [0]))
    assert {key: values.shape for key, values in features.items()} == {"i3d_feat": (1, 64), "clip_feat": (1, WIDTH)}


def test_a_stream_can_be_left_out(files: tuple[Path, Path], video: Path) -> None:
    only = open_encoders(
        find_recipe("charades"), clip_folder=files[0], i3d_weights=None, streams=["clip_feat"], device=CPU
    )
    assert list(only.encode(video)) == ["clip_feat"]
    assert list(only.description()["streams"]) == ["clip_feat"]
    with pytest.raises(InputError, match="--i3d_weights"):
        open_encoders(find_recipe("charades"), clip_folder=files[0], i3d_weights=None, device=CPU)


def test_description(files: tuple[Path, Path]) -> None:
    described = opened("activitynet", files).description()
    assert described["recipe"] == "activitynet"
    assert described["streams"] == {
        "i3d_feat": {"encoder": "I3D", "weights_sha256": sha256(files[1]), "rate": None, "width": 64},
        "clip_feat": {
            "encoder": "CLIP",
            "weights_sha256": sha256(files[0] / "model.safetensors"),
            "rate": 1.875,
            "width": WIDTH,
        },
    }
    assert opened("charades", files).description()["streams"]["i3d_feat"]["rate"] == 3.0


def test_features_that_are_not_finite_are_an_error(
    files: tuple[Path, Path], video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClipImageEncoder, "encode", lambda self, frames: torch.full((len(frames), 3), torch.nan))
    with pytest.raises(VideoError, match="its clip_feat are not finite"):
        opened("activitynet", files).encode(video)


def test_recipes() -> None:
    charades, activitynet = RECIPES["charades"], RECIPES["activitynet"]
    assert charades.digest != activitynet.digest
    assert charades.digest != replace(charades, clip_feat=replace(charades.clip_feat, rate=Fraction(2))).digest
    assert charades.to_dict()["i3d_feat"]["weights"] == "rgb_charades.pt"
    with pytest.raises(InputError, match=r"--recipe tvr: not offered: .*TensorFlow only"):
        find_recipe("tvr")
    with pytest.raises(InputError, match="--recipe x: expected charades, activitynet, small"):
        find_recipe("x")
