"""The launchers' command lines: read by the program's own parser, the user's flags last, the published values."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from easydict import EasyDict

from benchmarks import learning
from method.config.options import make_architecture, read_options
from method.runtime.files import read_json

REPOSITORY = Path(__file__).resolve().parents[1]
PUBLISHED = {
    "charades": {"margin": 0.2, "seed": 666, "neg_action_num": 8, "neg_object_num": 8},
    "activitynet": {"margin": 0.2, "seed": 520, "neg_action_num": 12, "neg_object_num": 12},
    "tvr": {"margin": 0.1, "seed": 808, "neg_action_num": 8, "neg_object_num": 8},
}
EVERYWHERE = {
    "best_frame_loss": True,
    "phrase_action_branch": True,
    "flow_feat": True,
    "cross_branch_fusion": True,
    "deformable_attn": True,
    "deformable_heads": 8,
    "deformable_offset_groups": 8,
    "deformable_offset_num": 8,
    "deformable_offset_scale": 12,
    "bsz": 128,
    "lr": 2.5e-4,
    "n_epoch": 100,
    "neg_query_loss": None,
    "neg_query_loss_weight": 0.005,
    "neg_query_loss_branch": "both",
    "neg_loss_label_smoothing": 0.2,
}
WIDTHS = {"charades": (1024, 512, 1024), "activitynet": (1024, 512, 1024), "tvr": (3072, 512, 768)}

# A stand-in for Python: finds itself when it is asked for an interpreter, and notes every other command line.
STUB = """#!/usr/bin/env bash
case "$1" in
  -c | */utils/environment.py) echo "$0" ;;
  *) printf '%s\\0' "$@" >> "$NOTES"; printf '\\n' >> "$NOTES" ;;
esac
exit "${STUB_STATUS:-0}"
"""


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    path = tmp_path / "stub" / "python"
    path.parent.mkdir()
    path.write_text(STUB)
    path.chmod(0o755)
    return path


def launch(stub: Path, launcher: str, *arguments: str, **environment: str) -> list[list[str]]:
    """The command lines that a launcher runs, started from another folder."""
    notes = stub.parent / "notes"
    notes.unlink(missing_ok=True)
    subprocess.run(
        ["bash", REPOSITORY / launcher, *arguments],
        cwd=stub.parent,
        env={**os.environ, "PYTHON": str(stub), "NOTES": str(notes), **environment},
        check=True,
    )
    return [line.split("\0")[:-1] for line in notes.read_text().splitlines()]


def options_of(stub: Path, name: str, *arguments: str, **environment: str) -> EasyDict:
    ((script, *flags),) = launch(stub, f"do_{name}.sh", *arguments, **environment)
    assert script == str(REPOSITORY / "method" / "train.py")
    assert flags[len(flags) - len(arguments) :] == list(arguments)
    return read_options(flags)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values(stub: Path, name: str) -> None:
    options = options_of(stub, name)
    expected: dict[str, Any] = {"dataset_name": name, **EVERYWHERE, **PUBLISHED[name]}
    assert {flag: options[flag] for flag in expected} == expected
    assert (options.visual_feat_dim, options.visual_flow_feat_dim, options.q_feat_size) == WIDTHS[name]
    assert options.video_feat_path.is_relative_to(REPOSITORY / "dataset" / f"{name}_i3d")


@pytest.mark.parametrize("name", PUBLISHED)
def test_launched_models_have_the_published_weights(stub: Path, name: str) -> None:
    shapes = read_json(REPOSITORY / "tests" / "golden" / "state_dict_shapes.json")[f"launch_{name}"]
    architecture = make_architecture(options_of(stub, name))
    assert architecture.fusion == "deformable"
    assert shapes["query_input_proj.LayerNorm.weight"] == [architecture.query_width]
    assert shapes["frame_input_proj.LayerNorm.weight"] == [architecture.action_width]
    assert shapes["frame_input_proj_action.LayerNorm.weight"] == [architecture.object_width]
    (offsets,) = (shape for key, shape in shapes.items() if key.endswith("A1.to_offsets.2.weight"))
    assert offsets[0] == architecture.offset_count
    assert offsets[1] * architecture.offset_groups == architecture.hidden_size
    assert any("pos_encoder_Q" in key for key in shapes) == architecture.fusion_positions


@pytest.mark.parametrize("name", PUBLISHED)
def test_launchers_and_yaml_files_agree(stub: Path, name: str) -> None:
    values = yaml.safe_load((REPOSITORY / "configs" / f"{name}.yaml").read_text())
    options = options_of(stub, name)
    shared = values.keys() - {flag for flag in values if str(values[flag]).startswith(("dataset/", "checkpoints/"))}
    assert {flag: options[flag] for flag in shared} == {flag: values[flag] for flag in shared}


@pytest.mark.parametrize("name", [*PUBLISHED, "demo"])
def test_the_users_flags_win(stub: Path, name: str, tmp_path: Path) -> None:
    given = [
        "--n_epoch",
        "2",
        "--device",
        "-1",
        "--bsz",
        "7",
        "--seed",
        "3",
        "--root_path",
        str(tmp_path),
        "--lr",
        "0.5",
    ]
    *_, (_, *flags) = launch(stub, f"do_{name}.sh", *given)[: 2 if name == "demo" else 1]
    options = read_options(flags)
    assert (options.n_epoch, options.device, options.bsz, options.seed, options.lr) == (2, -1, 7, 3, 0.5)
    assert options.root_path == tmp_path


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_argument_with_spaces_stays_one(stub: Path, name: str) -> None:
    assert options_of(stub, name, "--description", "two words * $HOME").description == "two words * $HOME"


@pytest.mark.parametrize("name", PUBLISHED)
def test_evaluation_of_a_checkpoint(stub: Path, name: str, tmp_path: Path) -> None:
    options = options_of(stub, name, "--only_eval", "--eval_ckpt", "checkpoints/x.ckpt", ROOT_PATH=str(tmp_path))
    assert options.only_eval
    assert options.eval_ckpt == tmp_path / "checkpoints" / "x.ckpt"
    assert options.results_root == tmp_path / "results"


@pytest.mark.parametrize("name", PUBLISHED)
def test_edited_captions_are_one_variable_away(stub: Path, name: str) -> None:
    assert options_of(stub, name, NEG_QUERY_LOSS="object").neg_query_loss == "object"
    assert options_of(stub, name, "--neg_query_loss", "both").neg_query_loss == "both"


@pytest.mark.parametrize("name", [*PUBLISHED, "demo"])
def test_several_processes_are_one_variable_away(stub: Path, name: str) -> None:
    *_, alone = launch(stub, f"do_{name}.sh", "--n_epoch", "2")[: 2 if name == "demo" else 1]
    *_, several = launch(stub, f"do_{name}.sh", "--n_epoch", "2", NPROC="3")[: 2 if name == "demo" else 1]
    assert several[:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3"]
    flags = [[word for word in words if word.startswith("--")] for words in (alone, several[5:])]
    assert flags[0] == flags[1]
    assert several[5] == alone[0] == str(REPOSITORY / "method" / "train.py")
    assert several[-2:] == ["--n_epoch", "2"]


@pytest.mark.parametrize("flags", [[], ["--neg_query_loss", "both"], ["--neg_query_loss=action"]])
def test_demo_trains_where_it_made_its_data_and_text_encoder(stub: Path, flags: list[str], tmp_path: Path) -> None:
    make, train = launch(stub, "do_demo.sh", *flags)
    world = REPOSITORY / "demo"
    assert make == [str(REPOSITORY / "utils" / "make_demo_dataset.py"), "--out", str(world), "--tiny_roberta"]
    assert train[train.index("--root_path") + 1] == str(world)
    options = read_options([*train[1:], "--root_path", str(tmp_path)])
    assert options.text_encoder == tmp_path / "checkpoints" / "roberta-large"
    assert bool(options.neg_query_loss) == bool(flags)


def test_the_benchmark_of_learning_has_the_options_of_the_demo(stub: Path, tmp_path: Path) -> None:
    _, (_, *train) = launch(stub, "do_demo.sh")
    launched, measured = (read_options([*flags, "--root_path", str(tmp_path)]) for flags in (train, learning.DEMO))
    differ = {flag for flag in launched if launched[flag] != measured[flag]}
    assert differ == {"description", "num_workers", "report"}


@pytest.mark.parametrize("name", [*PUBLISHED, "demo"])
def test_the_exit_status_is_the_programs(stub: Path, name: str) -> None:
    failing = STUB.replace("printf '\\n' >> \"$NOTES\"", "exit 3")
    stub.write_text(failing)
    done = subprocess.run(
        ["bash", REPOSITORY / f"do_{name}.sh"], env={**os.environ, "PYTHON": str(stub), "NOTES": os.devnull}
    )
    assert done.returncode == 3


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


@pytest.mark.parametrize("name", [*PUBLISHED, "demo"])
def test_launchers_are_executable_and_start_alike(name: str) -> None:
    launcher = REPOSITORY / f"do_{name}.sh"
    assert os.access(launcher, os.X_OK)
    text = launcher.read_text()
    assert text.startswith("#!/usr/bin/env bash\n# ")
    assert re.search(r"^set -euo pipefail$", text, re.MULTILINE)
