"""Small video encoders of the demo, in the files of I3D and CLIP: one sees motion only, the other what is there.

Their weights are calculated, not trained.

Letters: C channels, D width, K kernel size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from method.runtime.files import atomic_writer
from method.runtime.hub_environment import check_timeouts
from method.runtime.pretrained import quiet_transformers
from method.video.clip import ClipImageEncoder
from method.video.container import RGB
from method.video.i3d_weights import MIXED, PARTS, UNITS

WIDTH = 128  # of the image embeddings
_IMAGE, _PATCH = 32, 4  # pixels
_FAINT = 0.01  # share of the largest variance that is added to all
_DIRECTIONS = 8
_KERNEL = 7
_EPS = 1e-3  # of the batch norm of I3D
_QUIET = 0.02  # brightness changes that count as noise of the video codec


def save_motion_encoder(path: Path) -> None:
    """Save weights of an I3D that tells where brightness moves, and neither its colour nor, nearly, its outline.

    The first layer is a bank of spatiotemporal filters of the brightness: shifts in eight directions, growth and
    decline, each at two speeds, and something bright. The others hand this on through their poolings.
    """
    bank_CTHW = _filters()
    width = len(bank_CTHW) + 1  # the last channel is zero: the pooled branch of Inception carries it
    first = torch.zeros(width, 3, _KERNEL, _KERNEL, _KERNEL)
    first[:-1] = bank_CTHW[:, None] / 3
    state = _unit(UNITS[0], first, bias=-_QUIET)
    state |= _unit(UNITS[1], _passing(range(width), width, 1)) | _unit(UNITS[2], _passing(range(width), width, 3))
    for name in MIXED:
        # Channels: b0 all but three, then one of each of the other branches.
        passed = {"b0": range(width - 3), "b1a": [width - 3], "b2a": [width - 2], "b3b": [width - 1]}
        for part in PARTS:
            weight = _passing([0], 1, 3) if part in ("b1b", "b2b") else _passing(passed[part], width, 1)
            state |= _unit(f"Mixed_{name}.{part}", weight)
    with atomic_writer(path) as file:
        torch.save(state, file)


def _filters() -> Tensor:
    """The filters (C, K, K, K) of the first layer over time, height and width."""
    steps_K = torch.arange(_KERNEL, dtype=torch.float32) - _KERNEL // 2
    y_KK, x_KK = torch.meshgrid(steps_K, steps_K, indexing="ij")

    def bell(steps: Tensor, sigma: float) -> Tensor:
        return (-(steps**2) / (2 * sigma**2)).exp()

    blob_KK = bell(x_KK, 1.5) * bell(y_KK, 1.5)
    around_KK = bell(x_KK, 3) * bell(y_KK, 3)
    spot_KK = blob_KK / blob_KK.sum() - around_KK / around_KK.sum()
    filters = []
    for sigma in (0.7, 1.8):  # of the time
        change_K = steps_K * bell(steps_K, sigma)
        change_K /= change_K.abs().sum()
        for angle in torch.arange(_DIRECTIONS) * (2 * torch.pi / _DIRECTIONS):
            slope_KK = -(angle.cos() * x_KK + angle.sin() * y_KK) * blob_KK
            # Brighter ahead later on, and behind before.
            filters.append(-change_K[:, None, None] * slope_KK / slope_KK.abs().sum())
        filters += [change_K[:, None, None] * spot_KK, -change_K[:, None, None] * spot_KK]
    still_K = bell(steps_K, 1.8)
    filters.append((still_K / still_K.sum())[:, None, None] * spot_KK)
    return torch.stack(filters)


def _passing(channels: Sequence[int], inputs: int, kernel: int) -> Tensor:
    """A convolution (C, inputs, K, K, K) that hands on these channels."""
    weight = torch.zeros(len(channels), inputs, kernel, kernel, kernel)
    for to, channel in enumerate(channels):
        weight[to, channel, kernel // 2, kernel // 2, kernel // 2] = 1
    return weight


def _unit(name: str, weight: Tensor, bias: float = 0.0) -> dict[str, Tensor]:
    """The weights of a unit by their published names; its batch norm adds a number."""
    ones = torch.ones(len(weight))
    norm = {"weight": ones, "bias": bias * ones, "running_mean": 0 * ones, "running_var": (1 - _EPS) * ones}
    return {f"{name}.conv3d.weight": weight} | {f"{name}.bn.{part}": value for part, value in norm.items()}


def save_image_encoder(folder: Path, images: Sequence[RGB], seed: int) -> None:
    """Save a CLIP model that sees of which patches an image consists, and not where they are.

    Its weights are random and it has no position embeddings; the projection decorrelates the embeddings of examples.

    Args:
        folder: of the model.
        images: examples of what it is to see, (H, W, 3).
        seed: of the weights.
    """
    check_timeouts()  # a wrong one makes the import fail
    # Imported here because it takes seconds.
    from transformers import CLIPConfig, CLIPModel

    layers = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
    seen = {**layers, "image_size": _IMAGE, "patch_size": _PATCH}
    unused = {**layers, "vocab_size": 3, "bos_token_id": 1, "eos_token_id": 2}  # there must be a text tower
    with torch.random.fork_rng(devices=[]), torch.no_grad(), quiet_transformers():
        torch.manual_seed(seed)
        model = CLIPModel(CLIPConfig(vision_config=seen, text_config=unused, projection_dim=WIDTH))
        model.vision_model.embeddings.position_embedding.weight.zero_()
        model.visual_projection.weight.copy_(torch.eye(WIDTH))
        model.save_pretrained(folder)
        encoder = ClipImageEncoder(folder, torch.device("cpu"))
        embeddings_BD = encoder.encode(torch.stack([encoder.prepare(image) for image in images]))
        mean_D, covariance_DD = embeddings_BD.mean(0), embeddings_BD.T.cov()
        variances_D, axes_DD = torch.linalg.eigh(covariance_DD)
        model.vision_model.post_layernorm.bias.copy_(-mean_D)
        model.visual_projection.weight.copy_(axes_DD.T / (variances_D + _FAINT * variances_D.max()).sqrt()[:, None])
        model.save_pretrained(folder)
