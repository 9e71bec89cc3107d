"""QVHighlights: from files in the published form to a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from method.data.captions import read_captions
from method.evaluation.moments import read_moments
from method.runtime.errors import InputError
from tests.helpers.small_dataset import metrics, run_train
from utils import check_dataset
from utils.make_qvhighlights import main, read_annotations

TRAIN = [(10, "-abc_0.0_150.0"), (11, "-abc_0.0_150.0"), (12, "NUsG9BgSes0_210.0_360.0")]
VAL = [(20, "bP5KfdFJzC4_660.0_810.0"), (21, "x_1.0_2.0")]


def row(qid: int, vid: str, **changes: Any) -> dict[str, Any]:
    fields = {
        "qid": qid,
        "query": f"A family  is playing\tgame {qid}.",
        "duration": 126,
        "vid": vid,
        "relevant_windows": [[0, 16], [30, 60], [90, 120]],
        "relevant_clip_ids": [0, 1],
        "saliency_scores": [[4, 1, 1], [4, 1, 1]],
    }
    return {**fields, **changes}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """The annotations and features as published, below a folder."""
    for name, queries in (("train", TRAIN), ("val", VAL)):
        write(tmp_path / "data" / f"highlight_{name}_release.jsonl", *(row(qid, vid) for qid, vid in queries))
    random = np.random.default_rng(0)
    for folder, width in (("slowfast_features", 2304), ("clip_features", 512)):
        (tmp_path / "features" / folder).mkdir(parents=True)
        for vid in {vid for _, vid in (*TRAIN, *VAL)} | {"of the test split"}:
            features = random.standard_normal((5, width)).astype(np.float32)
            np.savez(tmp_path / "features" / folder / f"{vid}.npz", features=features)
    texts = tmp_path / "features" / "clip_text_features"
    texts.mkdir()
    for qid, _ in (*TRAIN, *VAL):
        states, pooled = random.standard_normal((6, 512)), random.standard_normal(512)
        np.savez(texts / f"qid{qid}.npz", last_hidden_state=states.astype(np.float16), pooler_output=pooled)
    return tmp_path


def test_the_published_files_become_a_dataset_that_trains(
    published: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(published)
    main(["data", "--features", "features"])
    said = capsys.readouterr().out
    assert "qvhighlightstrain.caption.txt: 3 captions of 2 videos" in said
    assert "moments of 2 captions" in said
    text = published / "dataset" / "qvhighlights" / "TextData"
    captions = read_captions(text / "qvhighlightstrain.caption.txt")
    assert [caption.id for caption in captions] == [f"{vid}#enc#{qid}" for qid, vid in TRAIN]
    assert captions[0].text == "A family is playing game 10."
    with (
        h5py.File(text / "clip_qvhighlights_query_feat.hdf5") as file,
        np.load(published / "features" / "clip_text_features" / "qid21.npz") as expected,
    ):
        assert file["x_1.0_2.0#enc#21"].dtype == np.float32
        assert np.array_equal(file["x_1.0_2.0#enc#21"][()], expected["last_hidden_state"])
    check_dataset.main(["qvhighlights", "--device", "-1"])
    assert "2304" not in capsys.readouterr().err
    flags = "--hidden_size 16 --n_epoch 1 --num_workers 0 --device -1 --description first"
    run = run_train(["--dataset_name", "qvhighlights", *flags.split()])
    assert metrics(run)["fused"]["r5"] == 100.0
    assert json.loads((run / "metrics.json").read_text())["moments"]["captions"] == 2
    capsys.readouterr()
    main(["data", "--features", "features"])
    assert capsys.readouterr().out.count("is there already") == 2


def test_moments_keep_every_window_and_name_the_longest(published: Path) -> None:
    main([str(published / "data"), "--root_path", str(published)])
    path = published / "dataset" / "qvhighlights" / "TextData" / "qvhighlightsval.moments.jsonl"
    first = json.loads(path.read_text().splitlines()[0])
    assert first == {
        "cap_id": "bP5KfdFJzC4_660.0_810.0#enc#20",
        "start": 30,
        "end": 60,
        "duration": 126,
        "windows": [[0, 16], [30, 60], [90, 120]],
    }
    moments = read_moments(path, {first["cap_id"]})
    assert moments is not None
    assert moments[first["cap_id"]].span == (30 / 126, 60 / 126)


WRONG = {
    "no JSON": ("{", "line 1: expected a JSON object"),
    "no qid": (json.dumps({**row(1, "v"), "qid": "1"}), "line 1: expected a JSON object with a whole number"),
    "vid": (json.dumps(row(1, "a#b")), "line 1: qid 1: vid is 'a#b', expected the id"),
    "query": (json.dumps(row(1, "v", query=" ")), "line 1: qid 1: query is ' ', expected a sentence"),
    "duration": (json.dumps(row(1, "v", duration=0)), "line 1: qid 1: duration is 0, expected seconds"),
    "test split": ('{"qid": 1, "vid": "v", "query": "q", "duration": 9}', "line 1: qid 1: relevant_windows: expected"),
    "window": (json.dumps(row(1, "v", relevant_windows=[[4, 2]])), "start before end"),
    "twice": ("\n".join([json.dumps(row(1, "v"))] * 2), "line 2: qid 1 occurs a second time"),
    "empty": ("\n", "no annotations"),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG)
def test_wrong_annotations_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(InputError, match=r"a\.jsonl: .*" + message):
        read_annotations(tmp_path / "a.jsonl")


def test_files_that_do_not_fit(published: Path) -> None:
    arguments = [str(published / "data"), "--features", str(published / "features"), "--root_path", str(published)]
    (published / "features" / "clip_text_features" / "qid12.npz").unlink()
    with pytest.raises(InputError, match="clip_text_features: no file for 1 of 5: qid12"):
        main(arguments)
    write(published / "data" / "highlight_val_release.jsonl", row(12, "v"))
    with pytest.raises(InputError, match="qid 12: in both annotation files"):
        main(arguments)
