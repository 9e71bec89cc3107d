from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import pytest

from method.config import options as config
from method.data.captions import read_captions
from method.runtime.errors import InputError
from tests.helpers.small_dataset import QUERY_WIDTH, SmallDataset
from tests.helpers.tiny_text_encoder import make_text_encoder
from utils.check_dataset import main


def arguments(small: SmallDataset, *more: str) -> list[str]:
    return ["demo", *small.flags(*more)[2:]]


def rows_of(printed: str) -> dict[str, str]:
    """What the table says of the edits of each kind."""
    lines = [line.split(" edits ") for line in printed.splitlines() if " edits " in line]
    return {name.split()[-1]: value.strip() for name, value in lines}


def test_shows_how_many_captions_have_edits(small: SmallDataset, capsys: pytest.CaptureFixture[str]) -> None:
    captions = str(len(read_captions(small.train_txt)))
    main(arguments(small))
    assert rows_of(capsys.readouterr().out) == {"action": captions, "object": captions}


@pytest.mark.parametrize("named", [True, False])
def test_without_vocabulary_files_a_dataset_is_whole(
    small: SmallDataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    """They are needed for edits alone, and a dataset of one's own need not name them."""
    (small.train_txt.parent / "demo_id_action_dict.json").unlink()
    if not named:
        lines = (config.CONFIGS / "demo.yaml").read_text().splitlines(keepends=True)
        (small.root / "demo.yaml").write_text("".join(line for line in lines if "action_dict" not in line))
        shutil.copy(config.CONFIGS / "base.yaml", small.root)
        monkeypatch.setattr(config, "CONFIGS", small.root)
    main(arguments(small))
    captions = str(len(read_captions(small.train_txt)))
    assert rows_of(capsys.readouterr().out) == {"action": "no vocabulary files", "object": captions}


def test_labels_with_several_right_videos_are_checked(
    small: SmallDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small.write_labels(tmp_path / "labels.jsonl")
    main(arguments(small, "--quick", "--multi_gt", str(path)))
    assert "several right videos: 20 captions have labels" in capsys.readouterr().out
    small.write_labels(path, skip=2)
    with pytest.raises(InputError, match=r"labels\.jsonl: no line for 2 of the 20 evaluated captions, the first"):
        main(arguments(small, "--quick", "--multi_gt", str(path)))
    main(arguments(small, "--quick", "--multi_gt", str(path), "--multi_gt_subset"))
    assert "2 captions have no labels and are left out" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"--multi_gt .*nowhere\.jsonl: no such file"):
        main(arguments(small, "--multi_gt", "nowhere.jsonl"))


def test_rows_that_are_all_zeros_are_counted(small: SmallDataset, caplog: pytest.LogCaptureFixture) -> None:
    main(arguments(small))
    assert not [said for said in caplog.messages if "all zeros" in said]
    with h5py.File(small.features, "r+") as videos:
        names = [f"{video}/i3d_feat" for video in small.videos_of(small.train_txt)[:2]]
        rows = sum(len(videos[f"{video}/i3d_feat"]) for video in small.videos_of(small.train_txt))
        videos[names[0]][:4] = 0
        videos[names[1]][-1] = 0
    main(arguments(small))
    (said,) = [said for said in caplog.messages if "all zeros" in said]
    assert said.endswith(
        f": 5 of {rows} rows of i3d_feat of the training split are all zeros, in 2 arrays, the first is {names[0]!r}"
    )


def test_a_mistyped_vocabulary_is_an_error(small: SmallDataset) -> None:
    for flag in config.VOCABULARY_FILES:
        with pytest.raises(InputError, match=rf"--{flag} .*nowhere\.json: no such file"):
            main(arguments(small, f"--{flag}", "nowhere.json"))


def test_a_vocabulary_that_training_would_not_read_refuses_nothing(
    small: SmallDataset, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = small.train_txt.parent / "demo_total_object_dict.json"
    path.write_text('{"NN": "dog"}')
    main(arguments(small))
    captions = str(len(read_captions(small.train_txt)))
    assert rows_of(capsys.readouterr().out) == {"action": captions, "object": "vocabulary refused"}
    (warning,) = [printed for printed in caplog.messages if str(path) in printed]
    assert "expected a list of words" in warning
    assert "training with object edits would fail" in warning
    with pytest.raises(InputError, match="expected a list of words"):
        main(arguments(small, "--neg_query_loss", "object"))


def test_what_is_odd_in_a_vocabulary_is_said_once(
    small: SmallDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = small.train_txt.parent / "demo_id_action_dict.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "gone#enc#0": {"runs": "VBZ"}}))
    encoder = make_text_encoder(tmp_path / "encoder", ["someone runs"], width=QUERY_WIDTH)
    for more in ([], ["--neg_query_loss", "both", "--text_encoder", str(encoder)]):
        caplog.clear()
        main(arguments(small, *more))
        assert sum("1 captions are not in the dataset: 'gone#enc#0'" in message for message in caplog.messages) == 1


def test_with_edits_it_refuses_what_training_would_refuse(small: SmallDataset, tmp_path: Path) -> None:
    edits = ("--neg_query_loss", "both", "--text_encoder", str(tmp_path / "encoder"))
    with pytest.raises(InputError, match=r"encoder: no such folder.*download_roberta"):
        main(arguments(small, *edits))
    sentences = [caption.text for caption in read_captions(small.train_txt)]
    make_text_encoder(tmp_path / "encoder", sentences, width=QUERY_WIDTH)
    main(arguments(small, *edits))
    (small.train_txt.parent / "demo_total_object_dict.json").unlink()
    with pytest.raises(InputError, match=r"--total_object_dict: no .*make_demo_dataset\.py --out"):
        main(arguments(small, *edits))
    main(arguments(small, *edits, "--neg_query_loss", "action"))
