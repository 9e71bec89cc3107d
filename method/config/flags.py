"""Every flag of the command line: type, choices, default and help. `method/config/options.py` reads their values."""

import argparse
import os
from collections.abc import Collection
from pathlib import Path

from method.config.parser import (
    PUBLISHED,
    Parser,
    Switch,
    cache_folder,
    fusion_weight,
    run_to_resume,
    training_recipe,
    user_path,
)
from method.config.yaml_values import branch_table
from method.model.batch_scores import NEGATIVE_QUERIES
from method.model.losses import LOSSES
from method.runtime.pretrained import CLIP_FOLDER

# Flags of the published launchers without effect, there and here: accepted, with a line in the log.
IGNORED = ("topk", "visual_feature")
# Flags of a single call: never read from a YAML file or an earlier run.
PER_CALL_FLAGS = [
    "description",
    "only_eval",
    "eval_ckpt",
    "zero_shot",
    "zero_shot_weight",
    "resume",
    "debug",
    "device",
    "device_ids",
    "save_scores",
    "report",
    "quiet",
]


def make_parser(description: str, listed: Collection[str] | None = None) -> Parser:
    """A parser for every flag that training, evaluation and search share.

    listed: groups and single flags that --help lists, None for all. The others are accepted all the same, so that a
        launcher's command line works for every program.
    """
    epilog = None if listed is None else "The other flags of method/train.py are accepted and have no effect."
    parser = Parser(description=description, epilog=epilog)
    for add_group in (
        _add_run,
        _add_data,
        _add_model,
        _add_training,
        _add_negatives,
        _add_text_encoder,
        _add_evaluation,
        _add_ignored,
    ):
        add_group(parser)
    for group in parser._action_groups:
        for action in group._group_actions:
            if listed is not None and action.dest != "help" and not {group.title, action.dest} & {*listed}:
                action.help = argparse.SUPPRESS
    return parser


def _add_run(parser: Parser) -> None:
    add = parser.add_argument_group("run").add_argument
    add("--dataset_name", "--dset_name", help="dataset: name of a YAML file in configs/ (default: that of --config)")
    add("--config", type=user_path, metavar="FILE", help="YAML file of a dataset outside configs/")
    add(
        "--recipe",
        type=training_recipe,
        default=PUBLISHED,
        help="training recipe: a file of configs/recipes/ by its name, or a YAML file of one's own by its path",
    )
    add("--root_path", type=user_path, default=Path(), help="folder that relative paths start from")
    add("--results_root", type=user_path, default=Path("results"), help="folder of all runs")
    add("--exp_id", default="a3prvr", help="experiment name: runs go to results/<dataset>/<exp_id>/<description>")
    add("--description", help="name of the run folder (default: the start time)")
    # Without a value it is False: argparse would parse "" as a path.
    add(
        "--resume",
        nargs="?",
        type=run_to_resume,
        const=False,
        metavar="DIR|auto",
        help="resume a run: its folder, or without a value the run --description or else the latest unfinished one; "
        "auto: resume the run with these flags, start it if there is none, exit if it is finished",
    )
    add("--only_eval", action="store_true", default=False, help="evaluate --eval_ckpt instead of training")
    add("--save_every_steps", type=int, default=0, help="also save every N steps within an epoch; 0: after epochs only")
    add("--seed", type=int, default=2026, help="random seed")
    add("--device", type=int, help="GPU index, -1 for the CPU (default: the first GPU, or the CPU if there is none)")
    add("--device_ids", type=int, nargs="+", help="same as --device, as the published launchers write it; one GPU only")
    add("--num_workers", type=int, default=min(4, os.cpu_count() or 1), help="data loader processes; 0: none")
    add("--pin_memory", action=Switch, default=True, help="page-locked host memory for copies to a GPU")
    add("--amp", choices=("off", "bf16", "fp16"), default="off", help="mixed precision for training")
    add("--quiet", action="store_true", default=False, help="no progress bars; log warnings only")
    add("--debug", action="store_true", default=False, help="smoke test: two epochs of two steps")


def _add_data(parser: Parser) -> None:
    add = parser.add_argument_group("data").add_argument
    add("--video_feat_path", type=user_path, help="HDF5 file of video features: <video id>/i3d_feat and /clip_feat")
    add("--feature_recipe", help="how video features must have been made, if they say so: charades, activitynet or tvr")
    add("--text_feat_path", type=user_path, help="HDF5 file of token features by caption id")
    add("--caption_train_txt", type=user_path, help="captions of the training split")
    add("--caption_test_txt", type=user_path, help="captions of the evaluation split")
    add(
        "--feature_cache",
        type=cache_folder,
        metavar="DIR|off",
        help="folder of the preprocessed features, reused by later runs; off: no cache "
        "(default: beside each feature file)",
    )
    add("--features_on_device", action=Switch, default=False, help="keep all training features in GPU memory")
    add(
        "--holdout_fraction",
        type=float,
        default=0.0,
        help="fraction of the training videos held out to select the best epoch; 0: select on the evaluation split",
    )


def _add_model(parser: Parser) -> None:
    add = parser.add_argument_group("model").add_argument
    add("--visual_feat_dim", type=int, default=1024, help="width of i3d_feat")
    add("--visual_flow_feat_dim", type=int, default=512, help="width of clip_feat")
    add("--q_feat_size", type=int, default=1024, help="width of the token features")
    add("--max_ctx_l", type=int, default=128, help="maximum frames of a video; longer videos are downsampled")
    add("--max_desc_l", type=int, default=30, help="maximum tokens of a query; longer queries are truncated")
    add("--action_branch", action=Switch, default=True, help="action branch: I3D features (motion)")
    add("--phrase_action_branch", action=Switch, default=False, help="object branch: appearance features")
    add("--flow_feat", action=Switch, default=False, help="object branch on clip_feat instead of i3d_feat")
    add("--cross_branch_fusion", action=Switch, default=False, help="cross attention between the branches' frames")
    add("--deformable_attn", action=Switch, default=False, help="deformable instead of standard cross attention")
    add(
        "--fusion_extent",
        choices=("padded", "valid"),
        help="padded: sampling points may fall into the padding, as in the published code; valid: they stay inside "
        "the video (default: valid; padded for published checkpoints)",
    )
    add("--fusion_positions", action=Switch, default=False, help="position embeddings in the deformable fusion")
    add(
        "--cross_attn_q",
        choices=("i3d_q", "clip_q", "double_q"),
        default="i3d_q",
        help="branch that provides the attention queries: action, object, or each in turn",
    )
    add("--cross_attn_head", type=int, default=4, help="heads of the standard cross attention")
    add("--deformable_heads", type=int, default=8, help="heads of the deformable attention")
    add("--deformable_offset_groups", type=int, default=8, help="channel groups, each with its own offsets")
    add("--deformable_offset_num", type=int, default=8, help="sampling points per frame")
    add("--deformable_offset_scale", type=float, default=96.0, help="maximum offset in frames")
    add("--deformable_offset_kernel_size", type=int, default=3, help="kernel size of the offset convolution")
    add("--hidden_size", type=int, default=384, help="hidden size of every branch")
    add("--n_heads", type=int, default=4, help="heads of the self-attention encoders")
    add(
        "--branches",
        type=branch_table,
        default={},
        metavar="YAML",
        help="further branches by name: key and width of the stream, optionally attends_to, weight, offset_scale and "
        "edits, as in 'audio: {key: audio_feat, width: 128}' (default: none)",
    )
    add(
        "--head",
        default="frames",
        help="what scores a video: its best frame (frames), its best run of clips and its best frame (clips), or its "
        "best average of 1, 3 or 5 adjacent frames (windows)",
    )
    add("--clip_weight", type=float, default=0.7, help="weight of the clips with --head clips; the frame has the rest")
    add(
        "--attention",
        choices=("plain", "gaussian"),
        default="plain",
        help="self-attention of the frames: plain, or the mean of four under Gaussian windows of different widths",
    )
    add("--registers", type=int, default=0, help="learned rows that every frame attends to besides the frames")
    add(
        "--fusion_gradient",
        action=Switch,
        default=False,
        help="the losses of a fused branch also train the encoder of the branch that it attends to",
    )
    add(
        "--query_weights",
        action=Switch,
        default=False,
        help="weights of the branches in the fused score that depend on the query, learned by the losses of that score",
    )


def _add_training(parser: Parser) -> None:
    add = parser.add_argument_group("training").add_argument
    add("--bsz", type=int, default=128, help="batch size in videos, each with all its captions")
    add("--lr", type=float, default=2.5e-4, help="peak learning rate")
    add("--lr_warmup_proportion", type=float, default=0.01, help="fraction of all steps used for linear warm-up")
    add("--lr_schedule", choices=("linear", "cosine", "constant"), default="linear", help="learning rate after warm-up")
    add("--ema", type=float, default=0.0, help="decay a step of a running average of the weights to evaluate; 0: off")
    add("--wd", type=float, default=0.01, help="decoupled weight decay")
    add("--grad_clip", type=float, default=-1.0, help="maximum norm of all gradients together; -1: no limit")
    add("--n_epoch", type=int, default=100, help="number of epochs")
    add("--max_es_cnt", type=int, default=10, help="early stopping: epochs tolerated without improvement; -1: off")
    add("--input_drop", type=float, default=0.1, help="dropout before the input projections")
    add("--drop", type=float, default=0.1, help="dropout in the encoders")
    add("--frame_drop", type=float, default=0.0, help="probability that a frame is left out of a training step")
    add("--token_drop", type=float, default=0.0, help="probability that a token is left out of a training step")
    add(
        "--feature_noise",
        type=float,
        default=0.0,
        help="Gaussian noise on frames and tokens in training, as a fraction of each one's norm",
    )
    add("--initializer_range", type=float, default=0.02, help="standard deviation of the initial weights")
    add(
        "--input_init",
        choices=("normal", "whitened"),
        default="normal",
        help="whitened: the input projections begin as whitened features of the training videos and captions",
    )
    add(
        "--fusion_init",
        choices=("normal", "aligned"),
        default="normal",
        help="aligned: the fusion begins with orthogonal values and small sampling offsets",
    )
    add("--losses", default="triplet,nce", help="loss terms to sum, of " + ", ".join(loss_names()))
    for name in loss_names():
        add(f"--{name}_weight", type=float, default=LOSSES[name].weight, help=f"weight of the {name} loss")
    add("--nce_temperature", type=float, default=0.07, help="temperature of the cosine_nce loss")
    add(
        "--fused_loss",
        choices=("off", "beside", "instead"),
        default="off",
        help="losses of the fused score (--fusion_weight), beside those of the branches or instead of them",
    )
    add("--fused_loss_weight", type=float, default=1.0, help="weight of the fused score's losses")
    add(
        "--false_negatives",
        choices=("off", "equal", "similar"),
        default="off",
        help="equal: captions of other videos with the same text are no negatives; similar: and those with similar "
        "token features are weaker ones",
    )
    add("--similar_from", type=float, default=0.9, help="cosine from which captions are similar for --false_negatives")
    add(
        "--soft_targets",
        type=float,
        default=0.0,
        help="fraction of cosine_nce whose targets are a teacher's scores; 0: off",
    )
    add(
        "--soft_target_teacher",
        choices=("videos", "average"),
        default="videos",
        help="teacher of the soft targets: the similarity of videos, or the model with averaged weights (--ema)",
    )
    add("--soft_target_temperature", type=float, default=0.1, help="temperature of the teacher's scores")
    add("--query_diverse_scale", type=float, default=32.0, help="alpha of the query_diverse loss")
    add("--query_diverse_margin", type=float, default=0.15, help="margin of the query_diverse loss")
    add("--margin", type=float, default=0.2, help="margin of the triplet loss")
    add("--hard_negative_start_epoch", type=int, default=20, help="first epoch with hard negatives in the triplet loss")
    add("--hard_pool_size", type=int, default=20, help="a hard negative is drawn from this many top-scoring videos")


def loss_names() -> list[str]:
    """The loss terms that `--losses` can name."""
    return [name for name in LOSSES if name != NEGATIVE_QUERIES]


def _add_negatives(parser: Parser) -> None:
    add = parser.add_argument_group("hard negative queries").add_argument
    add("--neg_query_loss", choices=("action", "object", "both"), help="edit verbs, nouns or both (default: off)")
    weight = LOSSES[NEGATIVE_QUERIES].weight
    add("--neg_query_loss_weight", type=float, default=weight, help="weight of the loss")
    add("--neg_query_start_epoch", type=int, default=0, help="first epoch with the loss")
    add("--neg_query_loss_branch", choices=("i3d", "clip", "both"), default="both", help="branches with the loss")
    add("--neg_loss_label_smoothing", type=float, default=0.2, help="label smoothing of the loss")
    add("--neg_action_num", type=int, default=8, help="edits of a caption with another verb")
    add("--neg_object_num", type=int, default=8, help="edits of a caption with another noun")
    add("--neg_cache", type=user_path, help="folder of edits encoded by utils/cache_negatives.py (default: none)")
    add("--id_action_dict", type=user_path, help="JSON file: caption id -> {verb: tag}")
    add("--total_action_dict", type=user_path, help="JSON file: tag -> [verbs]")
    add("--id_object_dict", type=user_path, help="JSON file: caption id -> {noun: tag}")
    add("--total_object_dict", type=user_path, help="JSON file: tag -> [nouns]")


def _add_text_encoder(parser: Parser) -> None:
    add = parser.add_argument_group("text encoder").add_argument
    add(
        "--text_encoder",
        type=user_path,
        default=Path("checkpoints/roberta-large"),
        help="folder of the text encoder for edited captions and typed sentences",
    )
    add("--text_layer", type=int, default=-1, help="hidden layer of the token features: -1 the last, -2 the one before")
    add("--text_special_tokens", choices=("keep", "drop"), default="keep", help="keep or drop <s> and </s>")


def _add_evaluation(parser: Parser) -> None:
    add = parser.add_argument_group("evaluation").add_argument
    add(
        "--eval_ckpt",
        type=user_path,
        help="checkpoint, trained here or published; or an exported model: its folder, or owner/name on the Hub",
    )
    add(
        "--fusion_weight",
        type=fusion_weight,
        default=0.5,
        metavar="W",
        help="weight of the action branch in the fused score, from 0 to 1; fitted: a training selects it together with "
        "the epoch, and the checkpoint stores it",
    )
    add("--eval_query_bsz", type=int, default=50, help="batch size for encoding captions")
    add("--eval_context_bsz", type=int, default=200, help="batch size for encoding videos")
    add("--eval_memory_mb", type=int, default=512, help="memory limit for a block of scores, in MiB")
    add(
        "--eval_amp",
        choices=("off", "bf16", "fp16"),
        default="off",
        help="precision of the encoders and embeddings in evaluation and search; scores are float32",
    )
    add("--zero_shot", action="store_true", default=False, help="zero-shot CLIP instead of --eval_ckpt")
    add(
        "--zero_shot_weight",
        type=float,
        default=0.0,
        metavar="W",
        help="fuse the cosine of zero-shot CLIP with the score of --eval_ckpt, at this weight from 0 to 1",
    )
    add(
        "--zero_shot_text",
        type=user_path,
        metavar="FILE",
        help="HDF5 file with CLIP's embedding (1, D) of each caption, by caption id (default: made by --clip_encoder)",
    )
    add(
        "--clip_encoder",
        type=user_path,
        default=CLIP_FOLDER,
        metavar="FOLDER",
        help="CLIP ViT-B/32, which embeds sentences for zero-shot CLIP",
    )
    add("--save_scores", action="store_true", default=False, help="write scores.npz: every caption x every video")
    add("--report", action="store_true", default=False, help="write report/index.html with figures and failure cases")
    add(
        "--moments",
        type=user_path,
        help="ground-truth moments: JSON lines of cap_id, start, end and duration in seconds; "
        "a file named in the YAML may be missing",
    )
    add(
        "--multi_gt",
        type=user_path,
        metavar="FILE",
        help="labels with several right videos for a caption: JSON lines of query_id, caption and gt_video_ids; "
        "a file named in the YAML may be missing",
    )
    add("--multi_gt_subset", action=Switch, default=False, help="leave out captions without a line in --multi_gt")


def _add_ignored(parser: Parser) -> None:
    add = parser.add_argument_group("without effect, as in the published code").add_argument
    add("--best_frame_loss", action="store_true", default=True, help="always on")
    add("--topk", nargs="*", default=None, help="ignored")
    add("--visual_feature", default=None, help="ignored")
