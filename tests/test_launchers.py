"""The launchers' command lines: read by the program's own parser, the user's flags last, the published values."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from easydict import EasyDict

from benchmarks import learning
from method.config.architecture import make_architecture
from method.config.options import read_options
from method.runtime.files import read_json
from method.training.checkpoint_file import write_checkpoint
from method.training.resume import saved_options
from tests.helpers.launching import STUB, launch, write_stub
from tests.helpers.paths import REPOSITORY

# What the published launchers end up with, read by the published program's own option parser.
PUBLISHED: dict[str, dict[str, dict[str, Any]]] = read_json(REPOSITORY / "tests" / "golden" / "launch_options.json")
(EDITS,) = PUBLISHED["charades"].keys() - {"launch"}
# Published options that have the same name here. A new one fails the test until it is entered here or below.
SAME_NAME = """dataset_name margin bsz seed lr lr_warmup_proportion wd n_epoch max_es_cnt hard_negative_start_epoch
    hard_pool_size max_desc_l max_ctx_l q_feat_size visual_feat_dim visual_flow_feat_dim hidden_size n_heads input_drop
    drop initializer_range fusion_weight cross_attn_head cross_attn_q deformable_offset_kernel_size deformable_heads
    deformable_offset_groups deformable_offset_num deformable_offset_scale grad_clip eval_query_bsz eval_context_bsz
    phrase_action_branch flow_feat cross_branch_fusion deformable_attn neg_query_loss neg_query_loss_branch
    neg_action_num neg_object_num neg_query_loss_weight neg_loss_label_smoothing"""
WITHOUT_EFFECT = {"best_frame_loss": "the paper's loss, which is always on"}


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    return write_stub(tmp_path)


def options_of(stub: Path, name: str, *arguments: str, **environment: str) -> EasyDict:
    ((script, *flags),) = launch(stub, f"do_{name}.sh", *arguments, **environment)
    assert script == str(REPOSITORY / "method" / "train.py")
    assert flags[len(flags) - len(arguments) :] == list(arguments)
    return read_options(flags)


@pytest.mark.parametrize("way", ["launcher", "no launcher", "checkpoint", "edits"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values(stub: Path, name: str, way: str, tmp_path: Path) -> None:
    expected = PUBLISHED[name]["launch"] | {"neg_query_loss": None}
    if way == "launcher":
        options = options_of(stub, name)
        assert options.video_feat_path.is_relative_to(REPOSITORY / "dataset" / f"{name}_i3d")
    elif way == "edits":
        options = options_of(stub, name, NEG_QUERY_LOSS="both")
        expected |= {"neg_query_loss": "both", **PUBLISHED[name][EDITS]}
    elif way == "no launcher":
        options = read_options(["--dataset_name", name])
    else:
        write_checkpoint(tmp_path / "p.ckpt", {"model": {"query_input_proj.net.1.bias": torch.ones(384)}})
        options = read_options(["--dataset_name", name, "--eval_ckpt", str(tmp_path / "p.ckpt")], saved=saved_options)
    assert expected.keys() <= set(SAME_NAME.split()) | WITHOUT_EFFECT.keys()
    compared = expected.keys() - WITHOUT_EFFECT.keys()
    assert {flag: options[flag] for flag in compared} == {flag: expected[flag] for flag in compared}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_flag_wins_over_the_yaml(stub: Path, name: str) -> None:
    other: dict[str, Any] = {"dataset_name": name, "cross_attn_q": "clip_q", "deformable_offset_kernel_size": 5}
    for flag, value in (PUBLISHED[name]["launch"] | PUBLISHED["charades"][EDITS]).items():
        if flag in WITHOUT_EFFECT or flag in other:
            continue
        if isinstance(value, bool | str):
            other[flag] = {"both": "i3d" if "branch" in flag else "action"}.get(str(value), False)
        else:
            other[flag] = value / 2 if isinstance(value, float) else 2 * abs(value)
    words = [word for flag, value in other.items() for word in (f"--{flag}", str(value))]
    options = options_of(stub, name, *words)
    assert {flag: options[flag] for flag in other} == other


@pytest.mark.parametrize("name", PUBLISHED)
def test_launched_models_have_the_published_weights(stub: Path, name: str) -> None:
    shapes = read_json(REPOSITORY / "tests" / "golden" / "state_dict_shapes.json")[f"launch_{name}"]
    architecture = make_architecture(options_of(stub, name))
    assert architecture.fusion == "deformable"
    assert shapes["query_input_proj.LayerNorm.weight"] == [architecture.query_width]
    assert shapes["frame_input_proj.LayerNorm.weight"] == [architecture.branches["action"].width]
    assert shapes["frame_input_proj_action.LayerNorm.weight"] == [architecture.branches["object"].width]
    (offsets,) = (shape for key, shape in shapes.items() if key.endswith("A1.to_offsets.2.weight"))
    assert offsets[0] == architecture.offset_count
    assert offsets[1] * architecture.offset_groups == architecture.hidden_size
    assert any("pos_encoder_Q" in key for key in shapes) == architecture.fusion_positions


@pytest.mark.parametrize("name", PUBLISHED)
def test_launchers_and_yaml_files_agree(stub: Path, name: str) -> None:
    launched, bare = options_of(stub, name), read_options(["--dataset_name", name, "--root_path", str(REPOSITORY)])
    assert launched == bare


@pytest.mark.parametrize("name", [*PUBLISHED, "demo"])
def test_the_users_flags_win(stub: Path, name: str, tmp_path: Path) -> None:
    given = f"--n_epoch 2 --device -1 --bsz 7 --seed 3 --root_path {tmp_path} --lr 0.5".split()
    *_, (_, *flags) = launch(stub, f"do_{name}.sh", *given, "--description", "two words * $HOME")
    options = read_options(flags)
    assert options.description == "two words * $HOME"
    assert (options.n_epoch, options.device, options.bsz, options.seed, options.lr) == (2, -1, 7, 3, 0.5)
    assert options.root_path == tmp_path


@pytest.mark.parametrize("name", PUBLISHED)
def test_evaluation_of_a_checkpoint(stub: Path, name: str, tmp_path: Path) -> None:
    options = options_of(stub, name, "--only_eval", "--eval_ckpt", "checkpoints/x.ckpt", ROOT_PATH=str(tmp_path))
    assert options.only_eval
    assert options.eval_ckpt == tmp_path / "checkpoints" / "x.ckpt"
    assert options.results_root == tmp_path / "results"


@pytest.mark.parametrize("name", [*PUBLISHED, "demo"])
def test_several_processes_are_one_variable_away(stub: Path, name: str) -> None:
    *_, alone = launch(stub, f"do_{name}.sh", "--n_epoch", "2")
    *_, several = launch(stub, f"do_{name}.sh", "--n_epoch", "2", NPROC="3")
    assert several[:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3"]
    flags = [[word for word in words if word.startswith("--")] for words in (alone, several[5:])]
    assert flags[0] == flags[1]
    assert several[5] == alone[0] == str(REPOSITORY / "method" / "train.py")
    assert several[-2:] == ["--n_epoch", "2"]


@pytest.mark.parametrize("name", [*PUBLISHED, "demo"])
def test_several_seeds_are_one_variable_away(stub: Path, name: str) -> None:
    *_, alone = launch(stub, f"do_{name}.sh", "--n_epoch", "2")[: 2 if name == "demo" else 1]
    *_, (script, seeds, *flags) = launch(stub, f"do_{name}.sh", "--n_epoch", "2", SEEDS="1 2 3")
    assert (script, seeds) == (str(REPOSITORY / "utils" / "train_seeds.py"), "--seeds=1 2 3")
    if name == "demo":  # each seed has a name of its own
        place = alone.index("--description")
        del alone[place : place + 2]
    assert flags == ["--", *alone[1:]]
    *_, several = launch(stub, f"do_{name}.sh", SEEDS="1 2 3", NPROC="2")
    assert several[2:5] == ["--nproc_per_node", "2", "--"]


@pytest.mark.parametrize("flags", [[], ["--neg_query_loss", "both"], ["--neg_query_loss=action"]])
def test_demo_trains_where_it_made_its_data_and_text_encoder(stub: Path, flags: list[str], tmp_path: Path) -> None:
    make, train = launch(stub, "do_demo.sh", *flags)
    world = REPOSITORY / "demo"
    assert make == [str(REPOSITORY / "utils" / "make_demo_dataset.py"), "--out", str(world)]
    assert train[train.index("--root_path") + 1] == str(world)
    options = read_options([*train[1:], "--root_path", str(tmp_path)])
    assert options.text_encoder == tmp_path / "checkpoints" / "roberta-large"
    assert bool(options.neg_query_loss) == bool(flags)


def test_the_benchmark_of_learning_has_the_options_of_the_demo(stub: Path, tmp_path: Path) -> None:
    _, (_, *train) = launch(stub, "do_demo.sh")
    launched, measured = (read_options([*flags, "--root_path", str(tmp_path)]) for flags in (train, learning.SYNTHETIC))
    differ = {flag for flag in launched if launched[flag] != measured[flag]}
    assert differ == {"description", "n_epoch", "num_workers", "report", "visual_feat_dim", "visual_flow_feat_dim"}


@pytest.mark.parametrize("name", [*PUBLISHED, "demo"])
def test_the_exit_status_is_the_programs(stub: Path, name: str) -> None:
    failing = STUB.replace("printf '\\n' >> \"$NOTES\"", "exit 3")
    stub.write_text(failing)
    environment = {**os.environ, "PYTHON": str(stub), "NOTES": os.devnull}
    assert subprocess.run([REPOSITORY / f"do_{name}.sh"], env=environment).returncode == 3


def test_missing_data_is_named_with_the_way_to_get_it(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", REPOSITORY / "do_charades.sh", "--device", "-1"],
        env={**os.environ, "PYTHON": sys.executable, "ROOT_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert str(tmp_path / "dataset/charades_i3d/FeatureData/charades_clip_i3d_numpy.hdf5") in line
    assert "python utils/download_data.py charades" in line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()


# Where and how they are started


ALL = [*PUBLISHED, "demo"]
SHELLS = [shell for shell in ("sh", "dash", "zsh", "ksh") if shutil.which(shell)]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("name", ALL)
def test_any_shell_starts_them(stub: Path, name: str, shell: str) -> None:
    *_, by_bash = launch(stub, f"do_{name}.sh", "--exp_id", "two words")
    *_, by_shell = launch(stub, f"do_{name}.sh", "--exp_id", "two words", shell=shell)
    place = by_bash.index("--description") + 1 if name == "demo" else 0
    assert by_shell[:place] + by_shell[place + 1 :] == by_bash[:place] + by_bash[place + 1 :]


@pytest.mark.parametrize("name", ALL)
def test_called_through_links(stub: Path, name: str) -> None:
    folder = stub.parent / "bin"
    folder.mkdir()
    (folder / "second").symlink_to(REPOSITORY / f"do_{name}.sh")
    (folder / "first").symlink_to("second")
    *_, (script, *_) = launch(stub, folder / "first")
    assert script == str(REPOSITORY / "method" / "train.py")


@pytest.mark.parametrize("name", ALL)
def test_an_exported_cdpath_leads_nowhere(stub: Path, name: str) -> None:
    """Started by a relative path, which `cd` would look up in the folders of CDPATH."""
    (stub.parent / "here").symlink_to(REPOSITORY)
    elsewhere = stub.parent / "elsewhere" / "here" / "utils"
    elsewhere.mkdir(parents=True)
    notes = stub.parent / "notes"
    environment = {"PYTHON": str(stub), "NOTES": str(notes), "CDPATH": f"{stub.parent / 'elsewhere'}:{stub.parent}:."}
    command = ["bash", f"here/do_{name}.sh"]
    done = subprocess.run(command, cwd=stub.parent, env={**os.environ, **environment}, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
    assert notes.read_text().splitlines()[-1].split("\0")[0] == str(REPOSITORY / "method" / "train.py")


@pytest.mark.parametrize("processes", ["abc", "0", "-1", "2.5", " 2", "gpu", "10000"])
def test_processes_that_cannot_be_counted(stub: Path, processes: str) -> None:
    for name in ALL:
        environment = {**os.environ, "PYTHON": str(stub), "NOTES": str(stub.parent / "notes"), "NPROC": processes}
        command = ["bash", str(REPOSITORY / f"do_{name}.sh")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        message = f"error: NPROC={processes}: expected a number of processes, 1 to 999\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", message)
    assert not (stub.parent / "notes").exists()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_clone_with_windows_line_ends_keeps_those_of_scripts(tmp_path: Path) -> None:
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    files = [".gitattributes", "do_demo.sh", "utils/environment.sh", ".ci/run", "configs/base.yaml"]
    files += ["requirements-lock.txt", "tests/golden/metrics.npz"]
    for name in files:
        (origin / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, origin / name)
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run(["git", *identity, *words], cwd=origin, check=True)
    subprocess.run(["git", "clone", "-q", "-c", "core.autocrlf=true", origin, clone], check=True)
    assert {name for name in files if (clone / name).read_bytes() != (REPOSITORY / name).read_bytes()} == set()


# The search of a folder of videos


@pytest.mark.parametrize("shell", ["bash", *SHELLS])
def test_the_search_is_that_of_the_repository(stub: Path, shell: str, tmp_path: Path) -> None:
    script = str(REPOSITORY / "utils" / "search_videos.py")
    words = ["two words", "a dog's $HOME", "--topk", "3"]
    assert launch(stub, "do_search.sh", *words, shell=shell) == [
        [script, "two words", "--root_path", str(REPOSITORY), *words[1:]]
    ]
    assert launch(stub, "do_search.sh", "videos", shell=shell, ROOT_PATH=str(tmp_path)) == [
        [script, "videos", "--root_path", str(tmp_path)]
    ]
    for alone in ([], ["--help"]):
        assert launch(stub, "do_search.sh", *alone, shell=shell) == [[script, *alone]]


def test_the_search_needs_what_reads_videos(stub: Path) -> None:
    noting = STUB.replace('*/utils/environment.py) echo "$0"', '*/utils/environment.py) echo "$*" >&2; echo "$0"')
    stub.write_text(noting)
    done = subprocess.run(
        ["bash", REPOSITORY / "do_search.sh", "videos"],
        env={**os.environ, "PYTHON": str(stub), "NOTES": os.devnull}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr.split()[-1] == "--video"
