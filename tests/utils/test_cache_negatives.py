import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from method.config.options import read_options
from method.config.settings import negatives_settings
from method.data.captions import Caption
from method.negatives.source import open_negatives
from method.runtime.errors import InputError
from tests.helpers.paths import REPOSITORY
from tests.helpers.small_negatives import edits_of, make_captions, write_vocabularies
from tests.helpers.tiny_text_encoder import WIDTH, make_text_encoder
from utils.cache_negatives import main

TRAINING, EVALUATED = make_captions(70), [Caption("val#enc#0", "val", "A man opens the door.")]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_vocabularies(folder, [*TRAINING, *EVALUATED])
    for name, captions in (("train.txt", TRAINING), ("val.txt", EVALUATED)):
        (folder / name).write_text("".join(f"{caption.id} {caption.text}\n" for caption in captions))
    make_text_encoder(folder / "encoder", [caption.text for caption in TRAINING])
    return folder


def flags(world: Path, *more: str) -> list[str]:
    files = [f"--{part}_{kind}_dict={part}_{kind}.json" for part in ("id", "total") for kind in ("action", "object")]
    return [
        *("--dataset_name", "charades", "--root_path", str(world), "--device", "-1", "--phrase_action_branch"),
        *("--caption_train_txt", "train.txt", "--caption_test_txt", "val.txt", *files),
        *("--text_encoder", "encoder", "--q_feat_size", str(WIDTH), "--neg_action_num", "2", "--neg_object_num", "3"),
        *more,
    ]


def trains(arguments: Sequence[str]) -> dict[str, int]:
    """Number of edits of all captions in a training with these flags."""
    options = read_options([*arguments, "--neg_query_loss", "both"])
    ids = [caption.id for caption in [*TRAINING, *EVALUATED]]
    source = open_negatives(negatives_settings(options), TRAINING, ids, torch.device("cpu"))
    assert source is not None
    return {kind: len(edits.owner_E) for kind, edits in edits_of(source, TRAINING, 0).items() if edits}


def test_builds_a_cache_for_training_with_the_same_flags(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = flags(world, "--neg_cache", str(tmp_path / "cache"))
    main([*arguments, "--pool_size", "5"])
    assert "600 edits of 70 captions to encode on cpu, about" in capsys.readouterr().out
    assert trains(arguments) == {"action": 60 * 2, "object": 60 * 3}
    main([*arguments, "--pool_size", "5"])
    printed = capsys.readouterr().out
    assert "to encode" not in printed
    assert "complete, 70 captions" in printed


def test_the_default_pool_is_twice_what_a_step_draws(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(flags(world, "--neg_cache", str(tmp_path / "cache")))
    assert f"{60 * 4 + 60 * 6} edits of 70 captions" in capsys.readouterr().out


def test_one_kind_can_be_cached_and_trained_alone(world: Path, tmp_path: Path) -> None:
    arguments = flags(world, "--neg_cache", str(tmp_path / "cache"))
    main([*arguments, "--neg_query_loss", "action"])
    options = read_options([*arguments, "--neg_query_loss", "action"])
    ids = [caption.id for caption in [*TRAINING, *EVALUATED]]
    assert open_negatives(negatives_settings(options), TRAINING, ids, torch.device("cpu")) is not None
    with pytest.raises(InputError, match="object vocabulary missing, expected"):
        trains(arguments)
    main(flags(world, "--neg_cache", str(tmp_path / "both")))
    with pytest.raises(InputError, match="expected --neg_query_loss both"):
        main(flags(world, "--neg_cache", str(tmp_path / "both"), "--neg_query_loss", "action"))


@pytest.mark.parametrize(("more", "named"), [
    ([], "--neg_cache is missing"),
    (["--neg_cache", "cache", "--pool_size", "2"], "--pool_size 2: expected at least --neg_object_num 3"),
    (["--neg_cache", "cache", "--text_encoder", "nowhere"], "nowhere: no such folder"),
    (["--neg_cache", "cache", "--caption_train_txt", "nowhere.txt"], "nowhere.txt: no such file"),
    (["--neg_cache", "cache", "--id_action_dict", "train.txt"], "train.txt: not valid JSON"),
])  # fmt: skip
def test_mistakes_are_one_line_errors_and_leave_no_files(world: Path, more: list[str], named: str) -> None:
    with pytest.raises(InputError, match=named):
        main(flags(world, *more))
    assert not (world / "cache").exists()


def test_interrupted_from_the_keyboard_it_exits_with_130_and_continues(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world, tmp_path / "world")
    many = make_captions(500)
    write_vocabularies(tmp_path / "world", [*many, *EVALUATED])
    (tmp_path / "world" / "train.txt").write_text("".join(f"{caption.id} {caption.text}\n" for caption in many))
    arguments = flags(tmp_path / "world", "--neg_cache", "cache")
    command = [sys.executable, str(REPOSITORY / "utils" / "cache_negatives.py"), *arguments]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    cache = tmp_path / "world" / "cache"
    while not (cache / "block-00001.rows").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=60)[1]
    assert process.returncode == 130, printed
    assert "blocks are saved; run the same command to continue" in printed
    assert "Traceback" not in printed
    before = {path.name: path.stat().st_mtime_ns for path in cache.glob("block*")}
    assert 2 <= len(before) < 8
    main(arguments)
    assert len(list(cache.glob("block*"))) == 8
    assert {name: (cache / name).stat().st_mtime_ns for name in before} == before
