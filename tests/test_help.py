"""`--help` of every program lists the flags that it reads, and no others."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import pytest
from easydict import EasyDict

from method import evaluate, search, train
from method.config.architecture import make_architecture
from method.config.flags import IGNORED, loss_names, make_parser
from method.config.options import read_options
from method.training.checkpoint import model_content
from method.training.checkpoint_file import write_checkpoint
from tests.helpers.own_videos import fake_tagger
from tests.helpers.small_dataset import QUERY_WIDTH, SmallDataset
from tests.helpers.small_models import lively_model
from tests.helpers.tiny_text_encoder import make_text_encoder
from utils import cache_negatives, check_dataset, convert_checkpoint, make_vocabularies, search_videos

FLAGS = {action.dest for action in make_parser("")._actions} - {"help"}
WIDTHS = {"visual_feat_dim", "visual_flow_feat_dim", "q_feat_size", "max_ctx_l", "max_desc_l"}
# Read by all, by read_options itself, from a changed copy, or only for certain models.
READ_ELSEWHERE = {"dataset_name", "config", "recipe", "root_path", "cross_attn_head", "neg_query_loss_branch", *WIDTHS}
READ_ELSEWHERE |= {"clip_encoder", "zero_shot_text"}
TRAINING_ONLY = {"input_drop", "drop", "initializer_range"}  # of an architecture
TRAINING_ONLY |= {"frame_drop", "token_drop", "feature_noise"}


class Recorded(EasyDict):  # type: ignore[misc]
    """Options that remember which of them were read."""

    reads: set[str]

    def __init__(self, options: EasyDict) -> None:
        super().__init__(options)
        object.__setattr__(self, "reads", set())

    def __getitem__(self, name: str) -> Any:
        self.reads.add(name)
        return super().__getitem__(name)

    def __getattribute__(self, name: str) -> Any:
        if name in FLAGS:
            object.__getattribute__(self, "reads").add(name)
        return super().__getattribute__(name)


def write_encoder(small: SmallDataset) -> None:
    texts = [caption.text for caption in small.captions()]
    make_text_encoder(small.root / "checkpoints" / "roberta-large", texts, width=QUERY_WIDTH)


def listed(program: ModuleType, capsys: pytest.CaptureFixture[str]) -> set[str]:
    with pytest.raises(SystemExit):
        program.main(["--help"])
    return set(re.findall(r"--(\w+)\b(?!\*)", capsys.readouterr().out))


def reads(program: ModuleType, arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The flags that a program reads, except those that every program has."""
    made: list[Recorded] = []

    def read(*given: Any, **more: Any) -> Recorded:
        made.append(Recorded(read_options(*given, **more)))
        return made[0]

    monkeypatch.setattr(program, "read_options", read)
    program.main(list(arguments))
    return made[0].reads


NEGATIVES = ["--neg_query_loss", "both"]


def architecture_flags() -> set[str]:
    options = Recorded(read_options(["--dataset_name", "demo", *NEGATIVES]))
    make_architecture(options)
    return options.reads


SEARCH = {
    "query_id",
    "like",
    "offset",
    "min_confidence",
    "moments_per_video",
    "split",
    "json",
    "rebuild",
    "engine",
    "engine_candidates",
    "engine_index",
    "engine_uri",
    "rebuild_outdated",
    "index_dir",
    "serve",
    "host",
    "port",
    "video_dir",
    "save_clips",
}


@pytest.mark.parametrize(("program", "arguments", "own", "unlisted"), [
    (evaluate, [], set(), {*TRAINING_ONLY, "caption_train_txt"}),  # of the dataset's files
    (search, ["a person opens the door"], SEARCH, {*TRAINING_ONLY, "eval_query_bsz", "pin_memory"}),  # of evaluation
    # Of the architecture only what the features have to fit.
    (check_dataset, NEGATIVES, {"quick"},
     {*architecture_flags() - {*WIDTHS, "neg_query_loss", "neg_query_loss_branch"}, "amp"}),
    (cache_negatives, [*NEGATIVES, "--neg_cache", "cache"], {"pool_size"},
     {*architecture_flags() - {"q_feat_size", "max_desc_l", "neg_query_loss"}, "video_feat_path", "feature_recipe",
      "amp"}),
    (convert_checkpoint, ["m.ckpt", "converted.ckpt"], {"safetensors", "metrics", "license"}, TRAINING_ONLY),
], ids=lambda value: value.__name__.split(".")[-1] if isinstance(value, ModuleType) else "")  # fmt: skip
def test_help_lists_what_is_read(
    program: ModuleType, arguments: list[str], own: set[str], unlisted: set[str], small: SmallDataset,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    texts = [caption.text for caption in small.captions()]
    make_text_encoder(small.root / "checkpoints" / "roberta-large", texts, width=QUERY_WIDTH)
    write_checkpoint(small.root / "m.ckpt", model_content(lively_model(), 0, {}))
    found = reads(program, [*small.flags("--eval_ckpt", "m.ckpt", "--max_desc_l", "10"), *arguments], monkeypatch)
    named = listed(program, capsys)
    assert (found & FLAGS) - named <= unlisted
    assert not named & unlisted
    assert (named & FLAGS) - found <= {*READ_ELSEWHERE, *({"topk"} if program is search else ())}
    assert {name for name in named - FLAGS if not name.startswith("no_")} == {*own, "dset_name", "help"}


def test_help_of_the_vocabularies(
    small: SmallDataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make_vocabularies, "open_tagger", lambda model: fake_tagger)
    found = reads(make_vocabularies, small.flags("--overwrite"), monkeypatch)
    named = listed(make_vocabularies, capsys)
    assert found & FLAGS <= named & FLAGS <= found | READ_ELSEWHERE
    assert named - FLAGS == {"overwrite", "tagger", "dset_name", "help"}


def test_help_of_the_search_of_a_folder_is_that_of_the_search(capsys: pytest.CaptureFixture[str]) -> None:
    named, of_search = listed(search_videos, capsys), listed(search, capsys)
    assert named < {*of_search, "recipe"}  # that of the features, with its other name
    assert {*SEARCH, "eval_ckpt", "zero_shot_weight", "recipe", "dataset_name", "device", "topk"} <= named
    assert not named & {"caption_test_txt", "video_feat_path", "text_feat_path", "hidden_size"}


def test_training_lists_and_reads_every_flag(
    small: SmallDataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Except those of published command lines that have no effect, and of another fusion."""
    assert listed(train, capsys) >= FLAGS
    write_encoder(small)
    unread = FLAGS - reads(train, small.flags(*NEGATIVES, "--n_epoch", "1"), monkeypatch)
    of_zero_shot = {"zero_shot_weight", "zero_shot_text", "clip_encoder"}  # with --only_eval
    of_other_losses = {f"{name}_weight" for name in loss_names()} - {"triplet_weight", "nce_weight"}  # in --losses
    assert unread == {
        *IGNORED,
        *of_zero_shot,
        *of_other_losses,
        "best_frame_loss",
        "cross_attn_head",
        "config",
        "recipe",
    }
