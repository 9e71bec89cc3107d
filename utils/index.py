"""The index of a checkpoint, which search reads: add videos, remove them, list, compact and verify them, calibrate.

    python utils/index.py add --eval_ckpt results/charades/a3prvr/RUN/model.ckpt                # as search does itself
    python utils/index.py add --eval_ckpt ... --split all --dry_run                             # what is missing?
    python utils/index.py add --eval_ckpt ... 3MSZA                                             # after a removal
    python utils/index.py remove --eval_ckpt ... 3MSZA YSKX3
    python utils/index.py list --eval_ckpt ...
    python utils/index.py compact --eval_ckpt ...
    python utils/index.py verify --eval_ckpt ...
    python utils/index.py calibrate --eval_ckpt ...                                          # confidence of answers
    torchrun --nproc_per_node 4 utils/index.py add --eval_ckpt ... --split all                  # shared by four GPUs

--zero_shot instead of --eval_ckpt: the index of zero-shot CLIP.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import method  # noqa: F401 (sets OpenMP variables before torch is imported)

from easydict import EasyDict

from method.config.architecture import make_architecture
from method.config.options import read_options
from method.config.parser import Parser, user_path
from method.config.settings import dataset_files, evaluation_settings, zero_shot_settings
from method.data.dataset_files import open_features
from method.data.provenance import check_recipe
from method.evaluation.zero_shot import open_zero_shot
from method.ops.precision import enable_fast_matmul
from method.runtime.disk import format_bytes
from method.runtime.errors import InputError, run_command, summarize
from method.runtime.hardware import choose_device
from method.runtime.process_group import joined_processes
from method.runtime.processes import Processes, expect_one_process
from method.runtime.progress import be_quiet
from method.runtime.run_folder import log_to_terminal
from method.serving.flags import LISTED_FLAGS
from method.serving.index.features import read_digests
from method.serving.index.snapshot import Snapshot
from method.serving.model_index import ModelIndex, checkpoint_index, zero_shot_index
from method.serving.selection import ALL, SPLITS, choose_split, select_videos
from method.training.checkpoint import load_model
from method.training.resume import saved_options
from utils import calibrate_search

ACTIONS = ("add", "remove", "list", "compact", "verify", "calibrate")
_WITHOUT_EFFECT = {"text_feat_path", "neg_query_loss", "neg_query_loss_branch", "text encoder", "zero_shot_weight"}
_WITHOUT_EFFECT |= {"zero_shot_text", "fusion_weight", "eval_memory_mb", "moments"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the first word of the command line says."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    action = words.pop(0) if words and not words[0].startswith("-") else None
    if action == "calibrate":
        calibrate_search.main(words)
        return
    if action != "add":
        expect_one_process(f"utils/index.py {action}")
    with joined_processes() as processes:
        log_to_terminal(processes.is_first)
        with processes.raise_on_all():
            options = read_options(
                words,
                "Change or check the index of a checkpoint.",
                listed=[name for name in LISTED_FLAGS if name not in _WITHOUT_EFFECT],
                extra=_add_flags,
                saved=saved_options,
            )
            if action not in ACTIONS:
                raise InputError(f"the first word is {action!r}, expected {', '.join(ACTIONS)}")
            _check(action, options)
            be_quiet(options.quiet or not processes.is_first)
            own = _open(options, processes)
        line = _act(action, own, options)
        if processes.is_first:
            print(line)


def _add_flags(parser: Parser) -> None:
    parser.usage = f"%(prog)s {{{','.join(ACTIONS)}}} [video ids] [flags]"
    parser.add_argument("video_ids", nargs="*", default=[], metavar="video_id", help="videos to add or remove")
    add = parser.add_argument_group("index").add_argument
    add("--index_dir", type=user_path, metavar="DIR", help="folder of the index, as of the search")
    add("--split", choices=(*SPLITS, ALL), help="videos to add, as those of the search")
    add("--dry_run", action="store_true", default=False, help="only print what would be added")
    add("--rebuild", action="store_true", default=False, help="add to a new index, in the place of any other")


def _check(action: str, options: EasyDict) -> None:
    if options.eval_ckpt is None and not options.zero_shot:
        raise InputError("--eval_ckpt FILE or --zero_shot is missing")
    if action == "remove" and not options.video_ids:
        raise InputError("remove: no video ids given")
    if action in ("list", "compact", "verify") and options.video_ids:
        raise InputError(f"{action}: got {options.video_ids[0]!r}, expected no video ids")
    for flag in ("dry_run", "rebuild", "split"):
        if options[flag] and action != "add":
            raise InputError(f"--{flag}: {action} does not use it, only add")


def _open(options: EasyDict, processes: Processes) -> ModelIndex:
    """The index of what the options name. InputError as of a search."""
    device = choose_device(options.device, options.device_ids, processes.local_rank)
    enable_fast_matmul(device)
    files, settings, folder = dataset_files(options), evaluation_settings(options), options.index_dir
    if options.zero_shot:
        zero_shot = zero_shot_settings(options)
        assert zero_shot is not None
        return zero_shot_index(
            open_zero_shot(files, zero_shot, device, ["video_feat_path"]), folder, settings, processes
        )
    loaded = load_model(options.eval_ckpt, make_architecture(options))
    model = loaded.model.to(device)
    reader = open_features(files, model.architecture, ["video_feat_path"])
    check_recipe(reader, files.recipe, options.eval_ckpt)
    return checkpoint_index(model, loaded.sha256, reader, options.eval_ckpt, folder, settings, processes)


def _act(action: str, own: ModelIndex, options: EasyDict) -> str:
    """Do it; returns a line that says what is there now."""
    index = own.index
    if action == "add":
        return _add(own, options)
    if action == "remove":
        return describe(index.remove(options.video_ids))
    if action == "compact":
        return describe(index.compact())
    snapshot = index.open()
    if snapshot is None:
        raise InputError(f"{index.folder}: no index there")
    if action == "verify":
        return _verify(own, snapshot)
    durations = snapshot.durations
    for video_id in snapshot.video_ids:
        print(video_id, f"{durations[video_id]:.1f} s" if video_id in durations else "", sep="\t")
    return describe(snapshot)


def _add(own: ModelIndex, options: EasyDict) -> str:
    with own.encoder.processes.raise_on_all():
        files = dataset_files(options)
        selected = select_videos(files, choose_split(files, options.split), own.encoder.reader).ids
    named = set(options.video_ids) or None
    video_ids = list(dict.fromkeys([*selected, *options.video_ids]))
    if options.dry_run:
        plan = own.index.plan(own.encoder, video_ids, named, options.rebuild)
        parts = {"add": plan.missing, "replace": plan.changed, "leave out, as removed before": plan.skipped}
        found = [f"{what} {len(ids)} ({summarize(ids)})" for what, ids in parts.items() if ids]
        return f"{own.index.folder}: would {'; '.join(found) or 'change nothing'}"
    return describe(own.index.update(own.encoder, video_ids, named=named, rebuild=options.rebuild))


def _verify(own: ModelIndex, snapshot: Snapshot) -> str:
    """Check all that can be checked. InputError naming what is wrong."""
    for segment in snapshot.segments:
        segment.verify()
        if name := segment.bad_branch():
            raise InputError(f"{segment.path}: the {name} embeddings are not all finite")
    reader, video_ids = own.encoder.reader, snapshot.video_ids
    digests = dict(zip(video_ids, read_digests(reader, video_ids, own.encoder.workers), strict=True))
    absent = [video_id for video_id in video_ids if not digests[video_id]]
    changed = [video_id for video_id in video_ids if not snapshot.digest(video_id).startswith(digests[video_id])]
    if changed:
        raise InputError(
            f"{reader.videos.path}: the features of {len(changed)} videos ({summarize(changed)}) are not those that the"
            " index was made from; update it with: utils/index.py add"
        )
    elsewhere = f"; {len(absent)} of them not in {reader.videos.path}" if absent else ""
    return f"verified: {describe(snapshot)}{elsewhere}"


def describe(snapshot: Snapshot) -> str:
    """What an index holds, in a line."""
    entries = snapshot.manifest.segments
    removed = sum(len(entry.removed) for entry in entries)
    left = f", {removed} removed ones not yet compacted" if removed else ""
    size = format_bytes(sum(entry.size for entry in entries))
    return f"{snapshot.folder}: {len(snapshot.places)} videos in {len(entries)} segments, {size}{left}"


if __name__ == "__main__":
    run_command(main)
