"""Add sentences to the features of your own videos, so that a model can be trained and evaluated on them.

    python utils/add_captions.py --dataset_name mine --captions sentences.csv
    python method/train.py --dataset_name mine

The table is CSV with a header, or JSON lines, with `video` and `sentence`, and optionally `start`, `end` and `duration`
in seconds and `split` (train or test); see utils/captions/table.py. Run it again when the table has changed: only new
sentences are encoded. After an interruption the same command continues; until it is done, the dataset is the old one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import method  # noqa: F401 (sets OpenMP variables before torch is imported)

from method.config.parser import Parser, user_path
from method.ops.precision import enable_fast_matmul
from method.runtime.errors import InputError, run_command
from method.runtime.hardware import choose_device
from method.runtime.processes import expect_one_process
from method.runtime.run_folder import log_to_terminal
from utils.captions.dataset import CaptionSettings, add_captions
from utils.captions.tagger import find_tagger


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the sentences of the dataset and print what was done."""
    expect_one_process("adding sentences")
    log_to_terminal()
    given = _read_arguments(arguments)
    device = choose_device(given.device)
    enable_fast_matmul(device)
    root = given.root_path
    settings = CaptionSettings(
        table=root / given.captions,
        name=given.dataset_name,
        root=root,
        features=None if given.video_feat_path is None else root / given.video_feat_path,
        encoder=root / given.text_encoder,
        device=device,
        layer=given.text_layer,
        special_tokens=given.text_special_tokens,
        test_fraction=given.test_fraction,
        skip_missing=given.skip_missing,
    )
    for line in add_captions(settings, partial(find_tagger, given.tagger)):
        print(line)


def _read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description="Add sentences to the features of your own videos.")
    add = parser.add_argument
    add("--dataset_name", required=True, help="name of the dataset, as given to utils/extract_features.py")
    add("--captions", type=user_path, required=True, metavar="FILE", help="table of sentences, .csv or .jsonl")
    add("--root_path", type=user_path, default=Path(), help="folder that relative paths start from")
    add(
        "--video_feat_path",
        type=user_path,
        metavar="FILE",
        help="HDF5 file of video features (default: dataset/<name>_i3d/FeatureData/<name>_clip_i3d_numpy.hdf5)",
    )
    default = Path("checkpoints/roberta-large")
    add("--text_encoder", type=user_path, default=default, metavar="DIR", help="folder of the text encoder")
    add("--text_layer", type=int, default=-1, help="hidden layer of the token features: -1 the last, -2 the one before")
    add("--text_special_tokens", choices=("keep", "drop"), default="keep", help="keep or drop <s> and </s>")
    add("--tagger", help="model of spaCy that finds verbs and nouns (default: the small English one, if it is there)")
    add(
        "--test_fraction",
        type=float,
        default=0.2,
        help="share of the videos without a split to evaluate",
    )
    add("--skip_missing", action="store_true", help="leave out sentences of videos that have no features")
    add("--device", type=int, help="GPU index, -1 for the CPU (default: the first GPU, or the CPU if there is none)")
    given = parser.parse_args(arguments)
    if not 0 < given.test_fraction < 1:
        raise InputError(f"--test_fraction {given.test_fraction}: expected a fraction above 0 and below 1")
    if not given.root_path.is_dir():
        raise InputError(f"--root_path {given.root_path}: no such folder")
    return given


if __name__ == "__main__":
    run_command(main)
