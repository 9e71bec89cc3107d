"""Every flag of the command line: its type, choices, default and help. `method/config/options.py` gives them values."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from method.config.branches import branch_table
from method.model.losses import LOSSES, NEGATIVE_QUERIES
from method.runtime.errors import InputError, shown

# Flags of the published launchers that never did anything there; accepted, and said so once.
IGNORED = ("topk", "visual_feature")
# `--resume auto`: resume the run that the flags name, or start it.
AUTO = "auto"


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are InputErrors and whose flags cannot be abbreviated."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise InputError(f"{message} (--help lists the flags)")

    def _parse_optional(self, arg_string: str) -> Any:
        """Take a caption id for a value: ids of YouTube videos may begin with dashes, and no flag has a `#`."""
        if "#" in arg_string and "=" not in arg_string.split("#")[0]:
            return None
        return super()._parse_optional(arg_string)


class Switch(argparse.Action):
    """`--x`, `--x true`, `--x false` and `--no_x`, so that an ablation can be one flag after a launcher's own."""

    def __init__(self, option_strings: Sequence[str], dest: str, default: bool, help: str) -> None:
        names = [*option_strings, f"--no_{dest}"]
        super().__init__(names, dest, nargs="?", const="true", default=default, metavar="true|false", help=help)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Store the flag's meaning."""
        try:
            value = boolean(values)
        except ValueError:
            parser.error(f"argument {option_string}: expected true or false, found {values!r}")
        setattr(namespace, self.dest, value != str(option_string).startswith("--no_"))


def boolean(text: str) -> bool:
    """Read true or false as people write them; ValueError for anything else."""
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if str(text).lower() not in words:
        raise ValueError(f"{text!r} is neither true nor false")
    return words[str(text).lower()]


def user_path(text: str) -> Path:
    """The `type` of every flag that takes a path; the result may be relative, `~` is expanded.

    ArgumentTypeError, which argparse prefixes with the flag, for an empty path (an unset shell variable), one that no
    file system takes, and the home folder of an unknown user.
    """
    try:
        if not text.strip() or b"\0" in os.fsencode(text):
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a path, found {shown(text)}") from None
    try:
        return Path(text).expanduser()
    except RuntimeError:
        home = text.split("/")[0]
        raise argparse.ArgumentTypeError(
            f"{text}: no home folder is known for {home}; for a folder of that name write ./{home}"
        ) from None


def cache_folder(text: str) -> Path | str:
    """Read a folder or 'off', which YAML takes for false."""
    return "off" if text.lower() in ("off", "false", "no") else user_path(text)


def run_to_resume(text: str) -> Path | str:
    """Read a folder or 'auto'."""
    return AUTO if text == AUTO else user_path(text)


def make_parser(description: str) -> Parser:
    """A parser with every flag that training and evaluation share."""
    parser = Parser(description=description)
    _add_run(parser)
    _add_data(parser)
    _add_model(parser)
    _add_training(parser)
    _add_negatives(parser)
    _add_evaluation(parser)
    return parser


def _add_run(parser: Parser) -> None:
    add = parser.add_argument_group("run").add_argument
    add(
        "--dataset_name", "--dset_name", help="dataset, one of the files in configs/ by its name; required for training"
    )
    add("--root_path", type=user_path, default=Path(), help="folder from which relative paths are taken")
    add("--results_root", type=user_path, default=Path("results"), help="folder of all runs")
    add("--exp_id", default="a3prvr", help="name of the experiment: results/<dataset>/<exp_id>/<description>")
    add("--description", help="name of the run's folder (default: its start time)")
    # Without a value False: argparse would take "" for a path.
    add("--resume", nargs="?", type=run_to_resume, const=False, metavar="DIR|auto", help="resume a run: "
        "its folder, or without a value the one that --description names, or the latest unfinished one; auto: resume "
        "the run of these flags, start it if there is none, do nothing if it is finished")  # fmt: skip
    add("--save_every_steps", type=int, default=0, help="steps between saves within an epoch; 0: after epochs only")
    add("--seed", type=int, default=2026, help="seed of everything random")
    add("--device", type=int, help="GPU number, -1 for the CPU (default: a GPU when there is one)")
    add("--device_ids", type=int, nargs="+", help="GPU to use when --device does not say; one only")
    add("--num_workers", type=int, default=min(4, os.cpu_count() or 1), help="processes that prepare batches ahead")
    add("--pin_memory", action=Switch, default=True, help="copy batches to a GPU from page-locked memory")
    add("--amp", choices=("off", "bf16", "fp16"), default="off", help="precision of matrix products while training")
    add("--quiet", action="store_true", default=False, help="no progress bars, and warnings only")
    add("--debug", action="store_true", default=False, help="two epochs of two steps, to see that everything works")
    add("--topk", nargs="*", default=None, help="accepted and ignored, as in the published program")
    add("--visual_feature", default=None, help="accepted and ignored, as in the published program")


def _add_data(parser: Parser) -> None:
    add = parser.add_argument_group("data").add_argument
    add("--video_feat_path", type=user_path, help="HDF5 file with a group a video: i3d_feat and clip_feat")
    add("--text_feat_path", type=user_path, help="HDF5 file with the token features of each caption id")
    add("--caption_train_txt", type=user_path, help="captions of the training videos")
    add("--caption_test_txt", type=user_path, help="captions of the evaluated videos")
    add("--id_action_dict", type=user_path, help="JSON: caption id -> {verb: tag}")
    add("--total_action_dict", type=user_path, help="JSON: tag -> [verbs]")
    add("--id_object_dict", type=user_path, help="JSON: caption id -> {noun: tag}")
    add("--total_object_dict", type=user_path, help="JSON: tag -> [nouns]")
    add("--feature_cache", type=cache_folder, metavar="DIR|off", help="folder of the features as the model sees them, "
        "kept for the next epoch and the next run; off: none (default: beside each feature file)")  # fmt: skip
    add("--features_on_device", action=Switch, default=False, help="training features in the memory of the GPU, "
        "on the CPU in RAM")  # fmt: skip
    add("--visual_feat_dim", type=int, default=1024, help="width of i3d_feat")
    add("--visual_flow_feat_dim", type=int, default=512, help="width of clip_feat")
    add("--q_feat_size", type=int, default=1024, help="width of the token features")
    add("--max_ctx_l", type=int, default=128, help="frames a video is sampled to at most")
    add("--max_desc_l", type=int, default=30, help="tokens of a query at most")
    add("--holdout_fraction", type=float, default=0.0, help="share of the training videos that selects the epoch")


def _add_model(parser: Parser) -> None:
    add = parser.add_argument_group("model").add_argument
    add("--action_branch", action=Switch, default=True, help="the branch that sees what moves (I3D)")
    add("--phrase_action_branch", action=Switch, default=False, help="the branch that sees objects")
    add("--flow_feat", action=Switch, default=False, help="feed the object branch clip_feat instead of i3d_feat")
    add("--cross_branch_fusion", action=Switch, default=False, help="let one branch's frames attend to the other's")
    add("--deformable_attn", action=Switch, default=False, help="deformable instead of ordinary cross attention")
    add("--fusion_extent", choices=("padded", "valid"), help="whether padding leaks into the deformable fusion as in "
        "the published program (default: valid; padded for published checkpoints)")  # fmt: skip
    add("--fusion_positions", action=Switch, default=False, help="position embeddings inside the deformable fusion")
    add("--cross_attn_q", choices=("i3d_q", "clip_q", "double_q"), default="i3d_q", help="whose frames ask")
    add("--cross_attn_head", type=int, default=4, help="heads of the ordinary cross attention")
    add("--deformable_heads", type=int, default=8, help="heads of the deformable attention")
    add("--deformable_offset_groups", type=int, default=8, help="channel groups with offsets of their own")
    add("--deformable_offset_num", type=int, default=8, help="sampled positions a frame")
    add("--deformable_offset_scale", type=float, default=96.0, help="largest offset, in frames")
    add("--deformable_offset_kernel_size", type=int, default=3, help="width of the convolution that predicts offsets")
    add("--hidden_size", type=int, default=384, help="width D of both branches")
    add("--n_heads", type=int, default=4, help="heads of the sequence encoders")
    add("--input_drop", type=float, default=0.1, help="dropout before the input projections")
    add("--drop", type=float, default=0.1, help="dropout inside the sequence encoders")
    add("--initializer_range", type=float, default=0.02, help="standard deviation of the initial weights")
    add("--branches", type=branch_table, default={}, metavar="YAML", help="further branches by name, each with the "
        "key and width of its stream, and if wanted attends_to, weight and offset_scale: "
        "'audio: {key: audio_feat, width: 128}'")  # fmt: skip
    add("--head", default="frames", help="how frames become the keys that queries are compared "
        "with")  # fmt: skip
    add("--best_frame_loss", action="store_true", default=True, help="always on, as the paper's loss is")


def _add_training(parser: Parser) -> None:
    add = parser.add_argument_group("training").add_argument
    add("--bsz", type=int, default=128, help="videos a step, each with all its captions")
    add("--lr", type=float, default=2.5e-4, help="highest learning rate")
    add("--lr_warmup_proportion", type=float, default=0.01, help="share of all steps over which it rises")
    add("--wd", type=float, default=0.01, help="decoupled weight decay")
    add("--grad_clip", type=float, default=-1.0, help="largest norm of all gradients together; -1: no limit")
    add("--n_epoch", type=int, default=100, help="epochs")
    add("--max_es_cnt", type=int, default=10, help="stop after more epochs than this without a better one; -1: never")
    add("--losses", default="triplet,nce", help="loss terms that are summed, of: " + ", ".join(loss_names()))
    for name in loss_names():
        add(f"--{name}_weight", type=float, default=LOSSES[name].weight, help=f"weight of the {name} loss")
    add("--margin", type=float, default=0.2, help="margin of the triplet loss")
    add("--hard_negative_start_epoch", type=int, default=20, help="first epoch with hard negatives in the triplet loss")
    add("--hard_pool_size", type=int, default=20, help="highest-scoring videos from which a hard negative is drawn")


def loss_names() -> list[str]:
    """The loss terms that `--losses` can name."""
    return [name for name in LOSSES if name != NEGATIVE_QUERIES]


def _add_negatives(parser: Parser) -> None:
    add = parser.add_argument_group("hard negative queries").add_argument
    add("--neg_query_loss", choices=("action", "object", "both"), help="edit verbs, nouns or both (default: off)")
    weight = LOSSES[NEGATIVE_QUERIES].weight
    add("--neg_query_loss_weight", type=float, default=weight, help="weight of the loss")
    add("--neg_query_loss_branch", choices=("i3d", "clip", "both"), default="both", help="branches with the loss")
    add("--neg_loss_label_smoothing", type=float, default=0.2, help="label smoothing of the loss")
    add("--neg_action_num", type=int, default=8, help="copies of a caption with another verb")
    add("--neg_object_num", type=int, default=8, help="copies of a caption with another noun")
    add("--text_encoder", type=user_path, default=Path("checkpoints/roberta-large"), help="folder of the encoder of "
        "edited captions and of sentences that are searched with")  # fmt: skip
    add("--text_layer", type=int, default=-1, help="its layer that gives the token features, an index into the hidden "
        "states: -1 the last, -2 the one before")  # fmt: skip
    add("--text_special_tokens", choices=("keep", "drop"), default="keep", help="whether <s> and </s> are tokens of a "
        "sentence")  # fmt: skip
    add("--neg_cache", type=user_path, help="folder of edits encoded beforehand by utils/cache_negatives.py "
        "(default: none)")  # fmt: skip


def _add_evaluation(parser: Parser) -> None:
    add = parser.add_argument_group("evaluation").add_argument
    add("--only_eval", action="store_true", default=False, help="evaluate --eval_ckpt and stop")
    add("--eval_ckpt", type=user_path, help="checkpoint to evaluate, ours or a published one")
    add("--fusion_weight", type=float, default=0.5, help="share of the action score in the fused score")
    add("--eval_query_bsz", type=int, default=50, help="captions encoded together")
    add("--eval_context_bsz", type=int, default=200, help="videos encoded together")
    add("--eval_memory_mb", type=int, default=512, help="memory for the blocks in which scores are computed, in MiB")
    add("--eval_amp", choices=("off", "bf16", "fp16"), default="off", help="precision in which videos and captions are "
        "encoded and kept for evaluation and search; scores are float32")  # fmt: skip
    add("--save_scores", action="store_true", default=False, help="write scores.npz, every caption against every video")
    add("--report", action="store_true", default=False, help="write report/, a page with figures of where it fails")
    add("--moments", type=user_path, help="moments of the evaluated captions, where known. JSON lines "
        '{"cap_id", "start", "end", "duration"}, in seconds; the YAML\'s file may be absent')  # fmt: skip
