from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import h5py
import pytest

from method import search
from method.runtime.errors import InputError
from tests.helpers.small_dataset import SmallDataset, own_log_handlers
from utils.index import main


class Cli:
    """Commands on an index of their own, with features of their own, of a checkpoint that is shared."""

    def __init__(self, checkpoint: Path, features: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.features = Path(shutil.copy(features, folder))
        self.folder, self._capsys = folder / "index", capsys
        self._flags = ["--eval_ckpt", str(checkpoint), "--device", "-1", "--index_dir", str(self.folder)]
        self._flags += ["--video_feat_path", str(self.features)]

    def run(self, action: str, *words: str) -> str:
        """The line that a command prints last."""
        return self.lines(action, *words)[-1]

    def lines(self, action: str, *words: str) -> list[str]:
        self._capsys.readouterr()
        with own_log_handlers():
            main([action, *words, *self._flags])
        return self._capsys.readouterr().out.splitlines()

    def found(self, *words: str) -> set[str]:
        """The videos that a search finds."""
        self._capsys.readouterr()
        with own_log_handlers():
            search.main([*self._flags, "--query_id", "E01#enc#0", "--json", "--topk", "99", *words])
        return {hit["video_id"] for hit in json.loads(self._capsys.readouterr().out)["results"]}


@pytest.fixture
def cli(one_epoch: Path, shared: SmallDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(one_epoch / "model.ckpt", shared.features, tmp_path, capsys)


def test_the_life_of_an_index(cli: Cli, caplog: pytest.LogCaptureFixture) -> None:
    assert cli.run("add", "--dry_run").startswith(f"{cli.folder}: would add 8 (E00; E01; E02; E03; E04; and 3 more)")
    assert not cli.folder.exists()
    assert cli.run("add").startswith(f"{cli.folder}: 8 videos in 1 segments, ")
    assert cli.run("add", "--split", "all", "--dry_run").startswith(f"{cli.folder}: would add 12 (T00")
    assert cli.run("add", "--split", "all").startswith(f"{cli.folder}: 20 videos in 2 segments, ")
    assert cli.run("remove", "E03", "T04").endswith(", 2 removed ones not yet compacted")
    assert cli.run("add", "--dry_run") == f"{cli.folder}: would leave out, as removed before 1 (E03)"
    assert cli.found() == {"E00", "E01", "E02", "E04", "E05", "E06", "E07"}
    assert "1 videos are not searched: they have been removed from the index" in caplog.text
    assert " 18 videos in 1 segments, " in cli.run("compact")
    assert " 18 videos in 1 segments, " in cli.run("compact")
    assert " 19 videos in 2 segments, " in cli.run("add", "E03")
    assert "E03" in cli.found()
    assert cli.run("list").startswith(f"{cli.folder}: 19 videos")
    assert cli.run("verify").startswith(f"verified: {cli.folder}: 19 videos in 2 segments")
    assert cli.run("add", "--rebuild").startswith(f"{cli.folder}: 8 videos in 1 segments, ")


def test_list_has_a_line_for_each_video(cli: Cli) -> None:
    cli.run("add")
    assert [line.split("\t")[0] for line in cli.lines("list")[:-1]] == [f"E0{number}" for number in range(8)]


def test_verify_finds_what_is_wrong(cli: Cli) -> None:
    cli.run("add")
    with h5py.File(cli.features, "r+") as file:
        file["E02/clip_feat"][0, 0] += 1
        del file["E05"]
    with pytest.raises(InputError, match=r"features of 1 videos \(E02\) are not those that the index was made from"):
        cli.run("verify")
    (segment,) = cli.folder.glob("segment-*")
    content = bytearray(segment.read_bytes())
    content[100] ^= 1
    segment.write_bytes(content)
    damaged = r"segment-\w+\.keys: corrupt, wrong checksum of the \w+ embeddings; rebuild it with --rebuild"
    with pytest.raises(InputError, match=damaged):
        cli.run("verify")


def test_a_damaged_segment_is_not_searched(cli: Cli) -> None:
    cli.run("add")
    (segment,) = cli.folder.glob("segment-*")
    content = bytearray(segment.read_bytes())
    content[100] ^= 1
    segment.write_bytes(content)
    with pytest.raises(InputError, match="wrong checksum"):
        cli.found()
    assert len(cli.found("--rebuild")) == 8


def test_an_index_that_cannot_be_written_is_read(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cli.run("add")
    os.utime(cli.features, ns=(0, 0))

    def refuse(folder: Path, manifest: object) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("method.serving.index.index.write_manifest", refuse)
    assert len(cli.found()) == 8
    assert "not written (Permission denied), so that features are compared each time" in caplog.text
    with pytest.raises(PermissionError):
        cli.run("add", "--split", "train")


@pytest.mark.parametrize(("words", "message"), [
    ([], "the first word is None, expected add, remove, list, compact, verify"),
    (["grow"], "the first word is 'grow', expected add"),
    (["add"], "--eval_ckpt FILE or --zero_shot is missing"),
    (["remove", "--zero_shot"], "remove: no video ids given"),
    (["list", "E01", "--zero_shot"], "list: got 'E01', expected no video ids"),
    (["compact", "--zero_shot", "--dry_run"], "--dry_run: compact does not use it, only add"),
])  # fmt: skip
def test_mistakes_are_named(words: list[str], message: str) -> None:
    with own_log_handlers(), pytest.raises(InputError, match=message):
        main([*words, "--dataset_name", "charades"])


def test_mistakes_about_an_index(cli: Cli) -> None:
    for action in ("list", "compact", "verify"):
        with pytest.raises(InputError, match="no index there"):
            cli.run(action)
    with pytest.raises(InputError, match="'X1/i3d_feat' is missing"):
        cli.run("add", "X1")
    cli.run("add")
    with pytest.raises(InputError, match="the index has no video 'X1'"):
        cli.run("remove", "X1")
