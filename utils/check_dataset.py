"""Check the files of a dataset as training does, read every feature once, and print a summary.

    python utils/check_dataset.py charades
    python utils/check_dataset.py charades --quick        # only headers and one row per array, as before training
    python utils/check_dataset.py charades --neg_query_loss both          # also what edited captions need
    python utils/check_dataset.py charades --multi_gt labels.jsonl        # also labels with several right videos

If there is a text encoder, its features of some captions are compared with the stored token features. Exit status 2
if training would refuse the files.
"""

from __future__ import annotations

import logging
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import method  # noqa: F401 (sets OpenMP variables before torch is imported)

import torch

from method.config.architecture import make_architecture
from method.config.options import VOCABULARY_FILES, read_options
from method.config.parser import Parser
from method.config.settings import NegativesSettings, dataset_files, negatives_settings
from method.data.captions import group_by_video
from method.data.dataset import TOKENS, FeatureReader
from method.data.dataset_files import open_features
from method.data.edits import KINDS, Kind, NegativeSource
from method.data.features import ACTION_KEY, OBJECT_KEY
from method.data.provenance import check_recipe, has_stream
from method.data.splits import Split, check_content, check_split, warn_train_test_overlap
from method.evaluation.multi_gt import read_right_videos
from method.negatives.editor import CaptionEditor
from method.negatives.source import open_negatives
from method.negatives.vocabulary import read_vocabulary
from method.runtime.errors import InputError, run_command, summarize
from method.runtime.hardware import choose_device
from method.runtime.progress import progress_bar
from method.runtime.run_folder import log_to_terminal
from method.text.check import check_encoder
from method.text.encoder import EncoderSettings, open_text_encoder

log = logging.getLogger(__name__)

_LISTED_FLAGS = [
    "dataset_name",
    "config",
    "root_path",
    "device",
    "device_ids",
    "video_feat_path",
    "feature_recipe",
    "text_feat_path",
    "caption_train_txt",
    "caption_test_txt",
    "visual_feat_dim",
    "visual_flow_feat_dim",
    "q_feat_size",
    "max_ctx_l",
    "max_desc_l",
    "seed",
    "neg_query_loss",
    "neg_query_loss_branch",
    "neg_action_num",
    "neg_object_num",
    "neg_cache",
    *VOCABULARY_FILES,
    "multi_gt",
    "multi_gt_subset",
    "text encoder",
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Check the dataset named on the command line and print a table."""
    log_to_terminal()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and not words[0].startswith("-"):
        words.insert(0, "--dataset_name")
    options = read_options(
        words, "Check a dataset: check_dataset.py NAME [flags]", listed=_LISTED_FLAGS, extra=_add_flags
    )
    architecture = make_architecture({**options, **_published_streams(options)})
    reader = open_features(dataset_files(options), architecture)
    check_recipe(reader, options.feature_recipe, f"dataset {options.dataset_name}")
    splits = [
        check_split("training split", options.caption_train_txt, reader),
        check_split("evaluated split", options.caption_test_txt, reader),
    ]
    warn_train_test_overlap(*splits)
    ids = [caption.id for split in splits for caption in split.captions]
    settings = negatives_settings(options)
    negatives = open_negatives(settings, splits[0].captions, ids, torch.device("cpu"))
    for split in splits:
        check_content(split, reader)
        if not options.quick:
            read_everything(split, reader)
    right_videos = read_right_videos(options.multi_gt, splits[1].captions, options.multi_gt_subset)
    for line in table(splits, reader, _editable(splits, settings, negatives)):
        print(line)
    if right_videos is not None:
        print(right_videos.describe())
    if not options.quick:
        _check_encoder(settings.encoder, choose_device(options.device, options.device_ids), reader, splits)


def _published_streams(options: Mapping[str, Any]) -> dict[str, bool]:
    """Flags for both published streams, even for an ablation; without one that neither videos nor the model have."""
    flags = {"action_branch": ACTION_KEY, "phrase_action_branch": OBJECT_KEY, "flow_feat": OBJECT_KEY}
    if not options["action_branch"] and not options["phrase_action_branch"]:
        return {}
    path = options["video_feat_path"]
    there = {key: path is None or not path.exists() or has_stream(path, key) for key in {*flags.values()}}
    return {flag: options[flag] or there[key] for flag, key in flags.items()}


def read_everything(split: Split, reader: FeatureReader) -> None:
    """Read every feature of a split; warn of rows that are all zeros.

    InputError names the first five features that are unreadable or not finite.
    """
    problems: list[str] = []
    for key, source in reader.hdf5_sources.items():
        ids = [caption.id for caption in split.captions] if key == TOKENS else split.video_ids
        rows, zeros = 0, {}
        for name in progress_bar([source.names.format(item) for item in ids], f"{split.name}: {key}", "item"):
            try:
                found = source.file.read(name, source.width)
            except InputError as error:
                problems.append(str(error))
                continue
            rows += len(found)
            if count := len(found) - int(found.any(1).sum()):
                zeros[name] = count
        if zeros:
            log.warning(
                "%s: %d of %d rows of %s of the %s are all zeros, in %d arrays, the first is %r",
                *(source.file.path, sum(zeros.values()), rows, key, split.name, len(zeros), next(iter(zeros))),
            )
    if problems:
        raise InputError(summarize(problems))


def table(splits: Sequence[Split], reader: FeatureReader, editable: Mapping[Kind, str]) -> list[str]:
    """Lines of a table with a column for each split.

    Args:
        splits: training and evaluated split.
        reader: of both.
        editable: for each kind of edits, the number of training captions that have some.
    """
    rows: dict[str, list[str]] = {"": [split.name for split in splits]}
    rows["videos"] = [str(len(split.video_ids)) for split in splits]
    rows["captions"] = [str(len(split.captions)) for split in splits]
    rows["captions a video"] = [_spread([len(c) for c in group_by_video(s.captions).values()]) for s in splits]
    for branch, (key, _) in reader.streams.items():
        rows[f"rows of {key}"] = [_spread(list(split.frames[branch].values())) for split in splits]
    rows["tokens a caption"] = [_spread(list(split.tokens.values())) for split in splits]
    rows |= {f"captions with {kind} edits": [count, ""] for kind, count in editable.items()}
    first, *others = (max(len(row[i]) for row in ([name, *cells] for name, cells in rows.items())) for i in range(3))
    return [
        "  ".join([name.ljust(first), *(cell.rjust(w) for cell, w in zip(cells, others, strict=True))])
        for name, cells in rows.items()
    ]


def _editable(
    splits: Sequence[Split], settings: NegativesSettings, negatives: NegativeSource | None
) -> dict[Kind, str]:
    """For each kind of edits, the number of training captions that have some, or why it is unknown.

    Args:
        splits: training and evaluated split.
        settings: of hard negative queries.
        negatives: source of the edits that the options select. Training does not read the vocabularies of other kinds,
            so their problems do not make the dataset invalid.
    """
    counted = {} if negatives is None else negatives.count_editable()
    editable = {kind: str(count) for kind, count in counted.items()}
    ids = [caption.id for split in splits for caption in split.captions]
    for kind in KINDS:
        tags, words = settings.vocabularies[kind]
        if kind in counted:
            continue
        if tags is None or words is None or not (tags.exists() and words.exists()):
            editable[kind] = "no vocabulary files"
            continue
        try:
            vocabulary = read_vocabulary(tags, words, kind, ids)
        except InputError as error:
            log.warning("%s; training with %s edits would fail", error, kind)
            editable[kind] = "vocabulary refused"
        else:
            editable[kind] = str(CaptionEditor(splits[0].captions, vocabulary).count_editable())
    return {kind: editable[kind] for kind in KINDS}


def _check_encoder(
    settings: EncoderSettings, device: torch.device, reader: FeatureReader, splits: Sequence[Split]
) -> None:
    """Report how well the text encoder, which only some users need, agrees with the token features."""
    if not settings.folder.exists():
        print(f"{settings.folder}: no text encoder to compare with the token features")
        return
    try:
        encoder = open_text_encoder(settings, device)
    except InputError as error:
        log.warning("%s; edited captions and search would fail", error)
        return
    fits, line = check_encoder(encoder, reader, [caption for split in splits for caption in split.captions])
    if fits:
        print(line)
    else:
        log.warning("%s", line)


def _spread(counts: Sequence[int]) -> str:
    return f"median {statistics.median(counts):g}, longest {max(counts)}"


def _add_flags(parser: Parser) -> None:
    help_text = "read only headers and one row of each array, and load no text encoder"
    parser.add_argument("--quick", action="store_true", default=False, help=help_text)


if __name__ == "__main__":
    run_command(main)
