"""Options: where their values come from, what they mean, and that wrong ones are named."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from easydict import EasyDict

from method.config import options as config
from method.config.architecture import make_architecture
from method.config.flags import make_parser
from method.config.options import CONFIGS, known_datasets, plain, read_options, read_yaml
from method.config.parser import cache_folder, run_to_resume, user_path
from method.data.dataset_files import DATA_FILES
from method.runtime.errors import InputError
from method.runtime.hardware import choose_device

FLAGS = {action.dest for action in make_parser("")._actions} - {"help"}


def read(*arguments: str, **more: Any) -> EasyDict:
    return read_options(["--dataset_name", "demo", *arguments], **more)


@pytest.fixture
def own_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that takes the place of configs/."""
    monkeypatch.setattr(config, "CONFIGS", tmp_path)
    (tmp_path / "demo.yaml").write_text("margin: 0.3\n")
    return tmp_path


# Where values come from


def test_flag_before_earlier_run_before_yaml_before_default(own_configs: Path) -> None:
    (own_configs / "demo.yaml").write_text("margin: 0.3\nbsz: 31\nlr: 3e-4\n")

    def kept(given: Any) -> dict[str, Any]:
        return {"margin": 0.5, "bsz": 51, "seed": 5, "not a flag any more": 1}

    assert read().margin == 0.3
    assert read(saved=kept).margin == 0.5
    options = read("--margin", "0.7", saved=kept)
    assert (options.margin, options.bsz, options.lr, options.seed, options.wd) == (0.7, 51, 3e-4, 5, 0.01)
    assert "not a flag any more" not in options


def test_a_flag_given_with_its_default_still_beats_the_yaml(own_configs: Path) -> None:
    assert read("--margin", "0.2").margin == 0.2


def test_the_dataset_of_an_earlier_run_needs_no_flag(own_configs: Path) -> None:
    assert read_options([], saved=lambda given: {"dataset_name": "demo"}).margin == 0.3
    with pytest.raises(InputError, match=r"--dataset_name is missing, expected one of demo, or --config FILE$"):
        read_options([])


def test_what_belongs_to_one_call_is_never_taken_over(own_configs: Path) -> None:
    earlier = {"device": 3, "only_eval": True, "eval_ckpt": "x", "description": "x", "debug": True, "save_scores": True}
    options = read(saved=lambda given: earlier)
    assert (options.device, options.only_eval, options.eval_ckpt, options.description) == (None, False, None, None)
    assert (options.debug, options.save_scores) == (False, False)


# YAML files


@pytest.mark.parametrize("name", known_datasets())
def test_every_yaml_key_is_a_flag_and_every_file_is_named(name: str) -> None:
    values = read_yaml(CONFIGS / f"{name}.yaml", make_parser(""))
    assert set(values) <= FLAGS
    vocabularies = () if name == "qvhighlights" else config.VOCABULARY_FILES  # nobody publishes any for it
    assert {*DATA_FILES, *vocabularies} <= set(values)
    options = read_options(["--dataset_name", name])
    for key, value in values.items():
        assert options[key] == (options.root_path / value if isinstance(value, Path) else value)


# Lists of lists of the same lists, 9 ** 6 in all.
LAUGHS = "lr: &a [1, 1]\n" + "".join(
    f"{flag}: &{own} [{', '.join([f'*{other}'] * 9)}]\n"
    for flag, own, other in zip(("wd", "drop", "bsz", "seed", "margin", "n_heads"), "bcdefg", "abcdef", strict=True)
)


@pytest.mark.parametrize(("content", "message"), [
    ("margin: 0.3\nmargim: 0.2\nbszz: 3\n", r"demo\.yaml: margim, bszz: no such flag"),
    ("only_eval: true\n", "only_eval: no such flag"),
    ("dataset_name: x\n", "dataset_name: no such flag"),
    ("3: 4\n", "3: no such flag"),
    ("bsz: many\n", "bsz: expected a value of type int, found 'many'"),
    ("bsz: 2.5\n", "bsz: expected a value of type int, found 2.5"),
    ("bsz:\n", "bsz: expected one value, found None"),
    ("bsz: [1, 2]\n", "bsz: expected one value, found a list"),
    ("video_feat_path:\n", "video_feat_path: expected one value, found None"),
    ("flow_feat: perhaps\n", "flow_feat: expected true or false, found 'perhaps'"),
    ("cross_attn_q: both\n", "cross_attn_q: expected one of i3d_q, clip_q, double_q, found 'both'"),
    ("bsz: -3\n", "--bsz -3: expected at least 1"),
    ("- a\n- b\n", "expected 'flag: value' lines, found list"),
    ("", "expected 'flag: value' lines, found NoneType"),
    ("a: [\n", "not valid YAML"),
    ("a: 2001-99-99\n", "not valid YAML"),
    ("a: !!python/object/apply:os.system ['false']\n", "not valid YAML"),
    ("bsz: " + "[" * 10_000, "not valid YAML"),
    ("bsz: &a [*a]", "bsz: expected one value, found a list"),
    ("n_epoch: 0x" + "f" * 5_000, "n_epoch: expected a value of type int, found a number of more than 60 digits"),
    ("bsz: " + "1:" * 3_000 + "1", "bsz: expected a value of type int, found a number of more than 60 digits"),
    ("bsz: !!python/name:os.system", "not valid YAML"),
    (LAUGHS, "lr: expected one value, found a list"),
    (b"a: \xff\xfe\n", r"demo\.yaml: line 1: byte 4 \(0xff\) is not UTF-8 text"),
], ids=lambda value: str(value)[:40])  # fmt: skip
def test_wrong_yaml_files(own_configs: Path, content: str | bytes, message: str) -> None:
    path = own_configs / "demo.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message):
        read()


def test_a_base_is_overridden_by_the_dataset(own_configs: Path) -> None:
    (own_configs / "base.yaml").write_text("margin: 0.1\nbsz: 31\nlr: 3e-4\n")
    (own_configs / "demo.yaml").write_text("base: base.yaml\nmargin: 0.3\n")
    options = read("--lr", "1")
    assert (options.margin, options.bsz, options.lr) == (0.3, 31, 1)
    assert known_datasets() == ["demo"]
    with pytest.raises(InputError, match=r"--dataset_name base: neither .*base\.yaml nor .*, expected one of demo, or"):
        read_options(["--dataset_name", "base"])


@pytest.mark.parametrize(("base", "content", "message"), [
    ("3", None, r"demo\.yaml: base: expected the name of a YAML file, found 3$"),
    ("base.yaml", None, r"base\.yaml: no such file"),
    ("base.yaml", "margim: 1\n", r"base\.yaml: margim: no such flag"),
    ("base.yaml", "bsz: many\n", r"base\.yaml: bsz: expected a value of type int, found 'many'"),
    ("base.yaml", "base: demo.yaml\n", r"base\.yaml: base: no such flag"),  # one level, and so no circles
])  # fmt: skip
def test_wrong_bases(own_configs: Path, base: str, content: str | None, message: str) -> None:
    (own_configs / "demo.yaml").write_text(f"base: {base}\n")
    if content is not None:
        (own_configs / "base.yaml").write_text(content)
    with pytest.raises(InputError, match=message):
        read()


def test_yaml_values_are_read_like_flags(own_configs: Path) -> None:
    (own_configs / "demo.yaml").write_text("lr: 1e-3\nflow_feat: yes\nexp_id: 17\nbsz: '12'\namp: bf16\n")
    options = read()
    assert (options.lr, options.flow_feat, options.exp_id, options.bsz) == (0.001, True, "17", 12)


@pytest.mark.parametrize(("earlier", "message"), [
    ({"bsz": "x"}, "options of the earlier run: bsz: expected a value of type int, found 'x'"),
    ({"bsz": [3]}, "options of the earlier run: bsz: expected one value"),
    ({"cross_attn_q": "x"}, "options of the earlier run: cross_attn_q: expected one of"),
    ({"hidden_size": -4}, "--hidden_size -4: expected at least 1"),
])  # fmt: skip
def test_wrong_options_of_an_earlier_run(earlier: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(saved=lambda given: earlier)


def test_an_unknown_dataset(own_configs: Path) -> None:
    (own_configs / "own.yaml").write_text("{}")
    with pytest.raises(
        InputError,
        match=r"--dataset_name nowhere: neither .*nowhere\.yaml nor .*, expected one of demo, own, or --config FILE$",
    ):
        read_options(["--dataset_name", "nowhere"])


# A dataset outside of configs/


@pytest.fixture
def mine(own_configs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A YAML file in a folder of its own, below the working directory."""
    (own_configs / "base.yaml").write_text("margin: 0.1\nbsz: 31\n")
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "data" / "mine.yaml"
    path.write_text("base: base.yaml\nbsz: 41\ncaption_test_txt: mine.txt\n")
    return path


def test_a_yaml_file_anywhere(mine: Path, tmp_path: Path) -> None:
    options = read_options(["--config", "data/mine.yaml"])
    assert (options.config, options.dataset_name) == (mine, "mine")
    assert (options.margin, options.bsz, options.caption_test_txt) == (0.1, 41, tmp_path / "mine.txt")
    named = read_options(["--config", "data/mine.yaml", "--dataset_name", "demo", "--bsz", "5"])
    assert (named.dataset_name, named.margin, named.bsz) == ("demo", 0.1, 5)
    (tmp_path / "data" / "base.yaml").write_text("margin: 0.4\n")  # goes before that of configs/
    assert read_options(["--config", "data/mine.yaml"]).margin == 0.4


def test_a_run_outlives_its_yaml_file(mine: Path, own_configs: Path) -> None:
    options = read_options(["--config", "data/mine.yaml"])
    mine.unlink()
    stored = plain(options)
    assert read_options([], saved=lambda given: stored) == options
    named = {**stored, "config": None}  # of a file that was in configs/
    assert read_options([], saved=lambda given: named) == {**options, "config": None}
    (own_configs / "mine.yaml").write_text("max_ctx_l: 7\n")  # another dataset of that name
    assert read_options([], saved=lambda given: stored) == options


def test_another_dataset_than_that_of_the_checkpoint(mine: Path, own_configs: Path) -> None:
    """What the model is comes from its checkpoint, the files from the dataset that is named."""
    (own_configs / "demo.yaml").write_text("caption_test_txt: demo.txt\nmargin: 0.3\n")
    stored = plain(read_options(["--dataset_name", "demo", "--hidden_size", "64"]))
    for arguments, name in ((["--config", "data/mine.yaml"], "mine"), ([], "demo")):
        options = read_options(arguments, saved=lambda given: stored)
        assert (options.dataset_name, options.caption_test_txt.stem) == (name, name)
        assert (options.hidden_size, options.margin) == (64, 0.3)


@pytest.mark.parametrize(("name", "content", "message"), [
    ("other", None, r"data/other\.yaml: no such file"),
    ("mine", "margim: 1\n", r"data/mine\.yaml: margim: no such flag"),
    ("mine", "config: x.yaml\n", r"data/mine\.yaml: config: no such flag"),
    ("mine", "base: nowhere.yaml\n", r"data/nowhere\.yaml: no such file"),
])  # fmt: skip
def test_wrong_yaml_files_elsewhere(mine: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        mine.write_text(content)
    with pytest.raises(InputError, match=message):
        read_options(["--config", f"data/{name}.yaml"])


# Checks


FUSED = ["--phrase_action_branch", "--cross_branch_fusion"]


@pytest.mark.parametrize(("arguments", "message"), [
    (["--bsz", "0"], "--bsz 0: expected at least 1"),
    (["--bsz", "x"], "argument --bsz: invalid int value: 'x'"),
    (["--bs", "3"], "unrecognized arguments: --bs 3"),
    (["stray"], "unrecognized arguments: stray"),
    (["--flow_feat", "perhaps"], "argument --flow_feat: expected true or false, found 'perhaps'"),
    (["--amp", "fp8"], "argument --amp: invalid choice: 'fp8'"),
    (["--n_heads", "5"], "--n_heads 5: expected a divisor of --hidden_size 384"),
    ([*FUSED, "--cross_attn_head", "5"], "--cross_attn_head 5: expected a divisor of --hidden_size 384"),
    ([*FUSED, "--deformable_attn", "--deformable_heads", "7"], "--deformable_heads 7: expected a divisor"),
    ([*FUSED, "--deformable_attn", "--deformable_offset_groups", "9"], "--deformable_offset_groups 9: expected a div"),
    ([*FUSED, "--deformable_attn", "--fusion_positions", "--max_ctx_l", "129"], "--max_ctx_l 129: expected at most"),
    (["--cross_branch_fusion"], "--cross_branch_fusion True: expected both branches on"),
    (["--no_action_branch"], "--action_branch False: expected true when --phrase_action_branch is false"),
    ([*FUSED, "--no_action_branch"], "--cross_branch_fusion True: expected both branches on"),
    (["--neg_query_loss", "both", "--neg_query_loss_branch", "clip"], "--neg_query_loss_branch clip: expected"),
    (["--deformable_offset_kernel_size", "4"], "--deformable_offset_kernel_size 4: expected an odd number"),
    (["--deformable_offset_kernel_size", "-1"], "--deformable_offset_kernel_size -1: expected an odd number"),
    (["--deformable_offset_scale", "-1"], "--deformable_offset_scale -1.0: expected at least 0"),
    (["--drop", "1"], "--drop 1.0: expected a fraction from 0 to below 1"),
    (["--fusion_weight", "1.1"], "--fusion_weight 1.1: expected a fraction from 0 to 1"),
    (["--holdout_fraction", "-0.1"], "--holdout_fraction -0.1: expected a fraction"),
    (["--lr_warmup_proportion", "nan"], "--lr_warmup_proportion nan: expected a fraction"),
    (["--lr", "0"], "--lr 0.0: expected a number above 0"),
    (["--lr", "nan"], "--lr nan: expected a number above 0"),
    (["--lr", "inf"], "--lr inf: expected a number above 0"),
    (["--wd", "inf"], "--wd inf: expected at least 0"),
    (["--margin", "nan"], "--margin nan: expected at least 0"),
    (["--grad_clip", "0"], "--grad_clip 0.0: expected -1 or a norm above 0"),
    (["--grad_clip", "inf"], "--grad_clip inf: expected -1 or a norm above 0"),
    (["--nce_temperature", "0"], "--nce_temperature 0.0: expected from 0.001 to 100"),
    (["--soft_targets", "0.5"], "--soft_targets 0.5: expected 0 without cosine_nce in --losses"),
    (["--soft_targets", "2"], "--soft_targets 2.0: expected a fraction from 0 to 1"),
    (["--soft_targets", "0.5", "--losses", "cosine_nce", "--no_phrase_action_branch", "--no_cross_branch_fusion"],
        "--soft_targets 0.5: expected 0 without the object branch"),
    (["--losses", "cosine_nce", "--soft_targets", "0.5", "--soft_target_teacher", "average"],
        "--soft_target_teacher average: expected --ema and --soft_targets above 0 beside it"),
    (["--ema", "0.9", "--soft_target_teacher", "average"], "--soft_target_teacher average: expected --ema and --soft_"),
    (["--similar_from", "1"], "--similar_from 1.0: expected a fraction from 0 to below 1"),
    (["--query_diverse_scale", "inf"], "--query_diverse_scale inf: expected from 0 to 1000"),
    (["--fused_loss_weight", "nan"], "--fused_loss_weight nan: expected at least 0"),
    (["--seed", "-1"], "--seed -1: expected at least 0"),
    (["--seed", str(2**63)], f"--seed {2**63}: expected a number below"),
    (["--max_es_cnt", "-2"], "--max_es_cnt -2: expected -1 or more"),
    (["--hard_negative_start_epoch", "-1"], "--hard_negative_start_epoch -1: expected 0 or more"),
    (["--only_eval"], "--only_eval True: expected --eval_ckpt FILE or --zero_shot beside it"),
    (["--device_ids", "0", "1"], r"--device_ids \[0, 1\]: expected one GPU"),
    (["--device", "-2"], "--device -2: expected the number of a GPU"),
    (["--root_path", "/no/such/folder"], "--root_path /no/such/folder: no such folder"),
], ids=lambda value: " ".join(value)[-50:] if isinstance(value, list) else "")  # fmt: skip
@pytest.mark.usefixtures("own_configs")
def test_wrong_values_are_named(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(*arguments)


@pytest.mark.usefixtures("own_configs")
def test_optimal_matching_without_scipy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "scipy" else find(name))
    message = "--losses triplet,optimal_matching: the package scipy is missing; run `pip install -r"
    with pytest.raises(InputError, match=message):
        read("--losses", "triplet,optimal_matching")
    assert read("--losses", "triplet")
    assert read("--losses", "triplet,optimal_matching", "--eval_ckpt", "model.ckpt")  # a model trained elsewhere


@pytest.mark.parametrize("arguments", [
    ["--deformable_heads", "7"],  # without fusion nothing depends on it
    ["--fusion_positions", "--max_ctx_l", "129"],
    [*FUSED, "--deformable_heads", "7"],
    [*FUSED, "--deformable_attn", "--cross_attn_head", "7"],
    ["--max_es_cnt", "-1"], ["--grad_clip", "-1"], ["--lr_warmup_proportion", "0"], ["--fusion_weight", "1"],
    ["--neg_query_loss", "both"],
    ["--losses", "cosine_nce", "--soft_targets", "0.5", "--soft_target_teacher", "average", "--ema", "0.9",
        "--no_phrase_action_branch", "--no_cross_branch_fusion"],
], ids=" ".join)  # fmt: skip
@pytest.mark.usefixtures("own_configs")
def test_values_that_are_right(arguments: list[str]) -> None:
    assert read(*arguments)


# Paths


def test_relative_paths_are_taken_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "root").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    options = read(
        "--root_path", "root", "--eval_ckpt", "a/b.ckpt", "--neg_cache", "/abs/cache", "--results_root", "~/r"
    )
    assert options.root_path == tmp_path / "root"
    assert options.eval_ckpt == tmp_path / "root" / "a" / "b.ckpt"
    assert options.video_feat_path == tmp_path / "root/dataset/demo_i3d/FeatureData/demo_clip_i3d_numpy.hdf5"
    assert options.neg_cache == Path("/abs/cache")
    assert options.results_root == tmp_path / "home" / "r"
    assert options.resume is None
    without = read("--eval_ckpt", "a/b.ckpt")
    assert (without.root_path, without.eval_ckpt) == (tmp_path, tmp_path / "a" / "b.ckpt")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder, and a machine without a user "nobody"."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("pwd.getpwnam", lambda name: {}[name])
    return tmp_path


PATH_FLAGS = sorted(
    {action.dest for action in make_parser("")._actions if action.type in (user_path, cache_folder, run_to_resume)}
    - {"root_path"}
)
NO_PATHS = [
    ("", "expected a path, found ''"),
    (" ", "expected a path, found ' '"),
    ("~nobody/x", r"~nobody/x: no home folder is known for ~nobody; for a folder of that name write \./~nobody"),
]


def test_every_flag_of_a_file_or_folder_takes_a_path() -> None:
    more = (
        "config",
        "results_root",
        "eval_ckpt",
        "resume",
        "text_encoder",
        "neg_cache",
        "moments",
        "multi_gt",
        "feature_cache",
        "clip_encoder",
        "zero_shot_text",
    )
    assert sorted([*DATA_FILES, *config.VOCABULARY_FILES, *more]) == PATH_FLAGS


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(("value", "message"), NO_PATHS)
def test_what_is_no_path_is_named_wherever_it_comes_from(own_configs: Path, value: str, message: str) -> None:
    for flag in (*PATH_FLAGS, "root_path"):
        with pytest.raises(InputError, match=f"argument --{flag}: {message}"):
            read(f"--{flag}", value)
    for flag in {*PATH_FLAGS} - {"eval_ckpt", "resume", "config"}:  # which no YAML file may have
        (own_configs / "demo.yaml").write_text(json.dumps({flag: value}))
        with pytest.raises(InputError, match=rf"demo\.yaml: {flag}: {message}"):
            read()
        (own_configs / "demo.yaml").write_text("margin: 0.3\n")
        with pytest.raises(InputError, match=f"options of the earlier run: {flag}: {message}"):
            read(saved=lambda given, flag=flag: {flag: value})


def test_a_path_no_file_system_takes(own_configs: Path) -> None:
    for value in ("a\0b", "\ud800"):
        (own_configs / "demo.yaml").write_text(json.dumps({"moments": value}))
        with pytest.raises(InputError, match=r"demo\.yaml: moments: expected a path, found 'a?\\"):
            read()


def test_paths_of_the_home_folder(home: Path, own_configs: Path) -> None:
    (own_configs / "demo.yaml").write_text("video_feat_path: ~/a.hdf5\n")
    options = read("--neg_cache", "~/edits", "--feature_cache", "~", saved=lambda given: {"results_root": "~/r"})
    assert [options[name] for name in ("video_feat_path", "neg_cache", "feature_cache", "results_root")] == [
        home / "a.hdf5", home / "edits", home, home / "r"]  # fmt: skip


def test_paths_given_now_are_not_taken_from_the_root_of_an_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That root has its files; what is typed now is meant from the folder where it is typed."""
    (tmp_path / "old").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.jsonl").write_text("{}")
    for flag in PATH_FLAGS:
        options = read(f"--{flag}", "m.jsonl", saved=lambda given: {"root_path": str(tmp_path / "old")})
        assert (options.root_path, options[flag]) == (tmp_path / "old", tmp_path / "m.jsonl")


def test_moments_may_be_absent_unless_given_by_hand(own_configs: Path) -> None:
    (own_configs / "demo.yaml").write_text("moments: nowhere.jsonl\n")
    assert read().moments.name == "nowhere.jsonl"
    assert read(saved=lambda given: {"moments": "gone.jsonl"}).moments.name == "gone.jsonl"
    with pytest.raises(InputError, match=r"--moments .*typo\.jsonl: no such file"):
        read("--moments", "typo.jsonl")


def test_the_root_of_an_earlier_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    options = read("--eval_ckpt", "x", saved=lambda given: {"root_path": str(tmp_path / "root")})
    assert options.results_root == tmp_path / "root" / "results"
    assert options.eval_ckpt == tmp_path / "here" / "x"
    moved = read(saved=lambda given: {"root_path": "/another/machine"})
    assert moved.results_root == tmp_path / "here" / "results"


def test_kept_options_are_plain_and_make_the_same_ones_again(tmp_path: Path) -> None:
    options = read("--root_path", str(tmp_path), "--neg_cache", "/abs/cache", "--n_heads", "2", "--no_pin_memory")
    kept = plain(options)
    assert set(kept) == FLAGS
    assert (kept["neg_cache"], kept["results_root"], kept["root_path"]) == ("/abs/cache", "results", str(tmp_path))
    assert read_options([], saved=lambda given: json.loads(json.dumps(kept))) == options


# What the options mean


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    for gpus, arguments, expected in (
        (0, [], "cpu"),
        (0, ["--device", "-1"], "cpu"),
        (0, ["--device_ids", "0"], "cpu"),
        (2, [], "cuda:0"),
        (2, ["--device", "1"], "cuda:1"),
        (2, ["--device_ids", "1"], "cuda:1"),
        (2, ["--device_ids", "1", "--device", "-1"], "cpu"),
    ):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        options = read(*arguments)
        assert str(choose_device(options.device, options.device_ids)) == expected
    with pytest.raises(InputError, match="--device 2: this machine has 2 usable GPUs; -1 is the CPU"):
        choose_device(2)


@pytest.mark.parametrize(("arguments", "expected"), [
    ([], {"fusion": "none", "head": "frames"}),
    (FUSED, {"fusion": "attention", "fusion_heads": 4, "fusion_extent": "valid"}),
    ([*FUSED, "--deformable_attn", "--fusion_extent", "padded"], {"fusion_heads": 8, "fusion_extent": "padded"}),
    (["--neg_query_loss", "action"], {"temperatures": ("action",)}),
    ([*FUSED, "--neg_query_loss", "action"], {"temperatures": ("action", "object")}),
    ([*FUSED, "--neg_query_loss", "both", "--neg_query_loss_branch", "clip"], {"temperatures": ("object",)}),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")  # fmt: skip
@pytest.mark.usefixtures("own_configs")
def test_architectures(arguments: list[str], expected: dict[str, Any]) -> None:
    architecture = make_architecture(read(*arguments)).as_dict()
    assert {name: architecture[name] for name in expected} == expected
