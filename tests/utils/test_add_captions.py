"""Own videos from features and sentences to a dataset that is checked, trained on, evaluated and searched."""

from __future__ import annotations

from pathlib import Path

import pytest

from method import search
from method.runtime.errors import InputError
from method.runtime.files import read_json
from tests.helpers.own_videos import NAME, SENTENCES, OwnVideos, fake_tagger
from tests.helpers.small_dataset import own_log_handlers, run_train
from utils import add_captions, check_dataset, make_vocabularies

SMALL = (
    *("--hidden_size", "16", "--deformable_heads", "4", "--deformable_offset_groups", "4", "--bsz", "5"),
    *("--n_epoch", "1", "--num_workers", "0", "--eval_context_bsz", "3"),
)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> OwnVideos:
    return OwnVideos(tmp_path_factory.mktemp("own"))


@pytest.fixture
def tagged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(add_captions, "find_tagger", lambda model: fake_tagger)
    monkeypatch.setattr(make_vocabularies, "open_tagger", lambda model: fake_tagger)


def flags(own: OwnVideos, *more: str) -> list[str]:
    return ["--dataset_name", NAME, "--root_path", str(own.root), "--device", "-1", *more]


def add(own: OwnVideos, *more: str) -> None:
    with own_log_handlers():
        add_captions.main(flags(own, "--captions", "sentences.csv", *more))


@pytest.mark.usefixtures("tagged")
def test_from_sentences_to_a_search(own: OwnVideos, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(f"{video_id}.mp4", SENTENCES[2 * i + k], k, k + 3) for i, video_id in enumerate(own.ids) for k in range(2)]
    own.write_table(rows, "video,sentence,start,end")
    add(own)
    assert "16 videos have no split in" in capsys.readouterr().out
    with own_log_handlers():
        check_dataset.main(flags(own, "--neg_query_loss", "both"))
    printed = capsys.readouterr().out
    assert f"{own.encoder}: matches the token features of 20 captions (mean cosine 1.0000)" in printed
    run = run_train(flags(own, *SMALL, "--neg_query_loss", "both"))
    metrics = read_json(run / "metrics.json")
    assert metrics["moments"]["captions"] == metrics["queries"]
    assert (metrics["videos"], metrics["queries"]) == (6, 12)
    with own_log_handlers():
        search.main(
            ["--eval_ckpt", str(run / "model.ckpt"), "--device", "-1", "--split", "both", "a person opens the door"]
        )
    found = capsys.readouterr().out
    assert "(16 videos" in found
    assert "s of 20.0 s" in found


@pytest.mark.usefixtures("tagged")
def test_vocabularies_can_be_made_again(own: OwnVideos, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own.write_table()
    add(own)
    files = sorted((own.folder / "TextData").glob("*_dict.json"))
    before = [path.read_bytes() for path in files]
    assert len(before) == 4
    arguments = ["--dataset_name", NAME, "--root_path", str(own.root)]
    with own_log_handlers():
        with pytest.raises(InputError, match=r"mine_total_object_dict\.json: already there; --overwrite replaces them"):
            make_vocabularies.main(arguments)
        make_vocabularies.main([*arguments, "--overwrite"])
        assert [path.read_bytes() for path in files] == before
        for path in files:
            path.unlink()
        make_vocabularies.main(arguments)
    assert [path.read_bytes() for path in files] == before
    assert "mine_id_object_dict.json: 32 of 32 captions have object edits" in capsys.readouterr().out


@pytest.mark.usefixtures("tagged")
def test_vocabularies_of_a_dataset_that_names_none_are_refused(own: OwnVideos, tmp_path: Path) -> None:
    own.write_table()
    add(own)
    text = own.folder / "TextData"
    config = tmp_path / "plain.yaml"
    config.write_text(
        f"caption_train_txt: {text}/minetrain.caption.txt\ncaption_test_txt: {text}/mineval.caption.txt\n"
    )
    with (
        own_log_handlers(),
        pytest.raises(InputError, match="dataset plain: its YAML file names no id_action_dict, total_"),
    ):
        make_vocabularies.main(["--config", str(config)])


@pytest.mark.parametrize(("more", "message"), [
    (("--test_fraction", "1"), "--test_fraction 1.0: expected a fraction above 0 and below 1"),
    (("--root_path", "nowhere"), "--root_path nowhere: no such folder"),
    (("--captions", "none.csv"), r"none\.csv: no such file"),
    (("--dataset_name", "../mine"), "expected the name of a folder, not a path"),
    (("--dataset_name", "tvr"), "a dataset of configs/"),
    (("--video_feat_path", "sentences.csv"), r"sentences\.csv: not a readable HDF5 file"),
])  # fmt: skip
def test_wrong_flags(own: OwnVideos, more: tuple[str, ...], message: str) -> None:
    own.write_table()
    with pytest.raises(InputError, match=message):
        add(own, *more)
