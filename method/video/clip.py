"""The image tower of CLIP: frames to embeddings in the space of sentences.

Radford et al., *Learning Transferable Visual Models From Natural Language Supervision*, ICML 2021. Frames are prepared
as the model's own processor does: bicubic to a shorter side of 224, centre crop, mean and standard deviation.

Letters: B frames, H and W pixels, S the side of the network's input, D width of the embedding.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from method.runtime.pretrained import clip_digest, load_clip_tower
from method.video.container import RGB

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


class ClipImageEncoder:
    """Embeds frames by the image tower and projection of a CLIP model in a folder, in fp16 on a GPU.

    InputError if the folder is not that of a complete CLIP model.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        model, config = load_clip_tower(folder, "vision")
        self.folder, self.device = folder, device
        self.size, self.width = int(config.image_size), int(config.projection_dim)
        self._model = model.to(device, torch.float16 if device.type == "cuda" else torch.float32)
        self._mean = torch.tensor(_MEAN, device=device)[:, None, None]
        self._std = torch.tensor(_STD, device=device)[:, None, None]

    def digest(self) -> str:
        """SHA-256 of the weights."""
        return clip_digest(self.folder)

    def prepare(self, image: RGB) -> Tensor:
        """A frame (H, W, 3) as bytes (3, S, S), resized and cropped."""
        side = self.size
        height, width = image.shape[:2]
        scaled = (side * width // height, side) if height <= width else (side, side * height // width)
        # Of Pillow, as in the processor; PyTorch's differs by a grey level.
        resized = np.asarray(Image.fromarray(image).resize(scaled, Image.Resampling.BICUBIC))
        left, top = (scaled[0] - side) // 2, (scaled[1] - side) // 2
        return torch.from_numpy(resized[top : top + side, left : left + side].copy()).permute(2, 0, 1)

    @torch.inference_mode()
    def encode(self, frames_B3SS: Tensor) -> Tensor:
        """Embeddings (B, D) of prepared frames, float32 and not normalised, on the encoder's device."""
        x = (frames_B3SS.to(self.device).float() / 255 - self._mean) / self._std
        embeddings_BD: Tensor = self._model(pixel_values=x.to(next(self._model.parameters()).dtype)).image_embeds
        return embeddings_BD.float()
