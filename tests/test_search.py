from __future__ import annotations

import doctest
import importlib.util
import io
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from method import search
from method.config.options import read_options
from method.evaluation.moments import Moment, best_moment
from method.evaluation.proposals import best_moments
from method.model.published import to_published
from method.model.retrieval import RetrievalModel
from method.runtime.errors import InputError
from method.serving.answer import Hit
from method.serving.flags import add_flags
from method.serving.output import ASCII_BLOCKS, BLOCKS, as_json, as_text, draw_timeline, span_text
from method.serving.prompt import Terminal
from method.serving.searcher import MAX_CHARACTERS, Searcher
from method.text.encoder import TextEncoder
from method.training.checkpoint import load_model
from method.training.resume import saved_options
from tests.helpers.paths import REPOSITORY
from tests.helpers.search_runs import kitchen, make_searcher
from tests.helpers.small_dataset import QUERY_WIDTH, SmallDataset, own_log_handlers, run_evaluate, run_train
from tests.helpers.small_models import SMALL
from tests.helpers.tiny_text_encoder import make_text_encoder
from tests.test_docs import fences
from utils import calibrate_search, index


class Trained:
    """A checkpoint trained on captions that a text encoder encoded, and that encoder."""

    def __init__(self, root: Path) -> None:
        self.data = SmallDataset(root)
        self.encoder = root / "checkpoints" / "roberta-large"
        captions = self.data.captions()
        texts = [caption.text for caption in captions]
        make_text_encoder(self.encoder, texts, width=QUERY_WIDTH)
        encoded = TextEncoder(self.encoder, QUERY_WIDTH, 5, torch.device("cpu")).encode(texts)
        with h5py.File(self.data.texts, "r+") as file:
            for caption, rows in zip(captions, encoded.values.split(encoded.layout.lengths), strict=True):
                del file[caption.id]
                file[caption.id] = rows.numpy()
        self.run = run_train(self.data.flags("--n_epoch", "1", "--description", "trained"))
        self.checkpoint = self.run / "model.ckpt"

    def search(self, *words: str) -> None:
        with own_log_handlers():
            search.main(["--eval_ckpt", str(self.checkpoint), "--device", "-1", *words])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("search"))


def answers(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_caption_finds_what_evaluation_found(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    results = run_evaluate(["--eval_ckpt", str(trained.checkpoint), "--device", "-1", "--save_scores"])
    scores = np.load(results / "scores.npz")
    for caption in trained.data.captions():
        trained.search("--query_id", caption.id, "--json", "--topk", "100")
    found = answers(capsys)
    assert [answer["query"]["caption_id"] for answer in found] == scores["query_ids"].tolist()
    for number, answer in enumerate(found):
        order = np.argsort(-scores["fused"][number], kind="stable")
        assert [hit["video_id"] for hit in answer["results"]] == scores["video_ids"][order].tolist()
        for name in ("action", "object", "fused"):
            own = [hit["scores"][name] for hit in answer["results"]]
            assert np.array(own, np.float32).tolist() == scores[name][number][order].tolist()  # to the bit
        right = scores["video_ids"].tolist().index(answer["query"]["video_id"])
        assert answer["query"]["right_rank"] == (scores["fused"][number] >= scores["fused"][number][right]).sum()


@pytest.mark.skipif(importlib.util.find_spec("milvus_lite") is None, reason="milvus-lite is not installed")
def test_milvus_shows_what_the_exact_engine_shows(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from milvus_lite.server_manager import server_manager_instance

    query = ("--query_id", trained.data.captions()[2].id, "--json", "--topk", "3")
    trained.search(*query)
    trained.search(*query, "--engine", "milvus", "--engine_uri", str(tmp_path / "frames.db"))
    server_manager_instance.release_all()
    exact, found = answers(capsys)
    assert found["results"] == exact["results"]
    assert found["query"]["right_rank"] is None


def test_the_coarse_engine_with_enough_candidates_shows_what_the_exact_one_shows(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    query = ("--query_id", trained.data.captions()[2].id, "--json", "--topk", "3")
    for engine in ([], ["--engine", "coarse"], ["--engine", "coarse", "--engine_candidates", "1"]):
        trained.search(*query, *engine)
    exact, found, few = answers(capsys)
    assert found["results"] == few["results"] == exact["results"]  # at least 4 times those shown: 12 of 8
    assert found["query"]["right_rank"] is None
    with pytest.raises(InputError, match="--engine_candidates 0: expected at least 1"):
        trained.search(*query, "--engine", "coarse", "--engine_candidates", "0")


def test_the_flags_of_an_engine_belong_together(trained: Trained) -> None:
    with pytest.raises(InputError, match=r"--engine milvus needs --engine_uri, FILE\.db or http://HOST:PORT"):
        trained.search("--engine", "milvus", "a cup")
    with pytest.raises(InputError, match=r"--engine_uri frames\.db needs --engine milvus"):
        trained.search("--engine_uri", "frames.db", "a cup")


def test_a_published_checkpoint_is_searched_with_the_flags_of_its_launcher(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is evaluated with extent 'padded', where a score depends on the batch of a video, and so does its index."""
    loaded = load_model(trained.checkpoint, SMALL).model
    path = tmp_path / "published.ckpt"
    architecture = replace(loaded.architecture, fusion_extent="padded", temperatures=("action", "object"))
    torch.save({"model": to_published(RetrievalModel(architecture).state_dict(), architecture), "epoch": 3}, path)
    flags = trained.data.flags("--eval_ckpt", str(path))
    scores = np.load(run_evaluate([*flags, "--save_scores", "--description", "published"]) / "scores.npz")
    for number, batch in ((0, "4"), (0, "3"), (7, "3")):
        with own_log_handlers():
            words = ["--query_id", str(scores["query_ids"][number]), "--json", "--topk", "100"]
            search.main([*flags, *words, "--eval_context_bsz", batch])
        (answer,) = answers(capsys)
        order = np.argsort(-scores["fused"][number], kind="stable")
        found = [hit["score"] for hit in answer["results"]]
        assert np.array_equal(np.array(found, np.float32), scores["fused"][number][order]) == (batch == "3")
        assert batch != "3" or [hit["video_id"] for hit in answer["results"]] == scores["video_ids"][order].tolist()


def test_a_sentence_finds_what_its_features_find(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    caption = trained.data.captions()[3]
    trained.search("--query_id", caption.id, "--json")
    trained.search(caption.text, "--json")
    trained.search(caption.id, "--json")
    by_id, by_text, by_typed_id = answers(capsys)
    nothing = dict.fromkeys(("caption_id", "video_id", "right_rank", "like"))
    assert by_text["query"] == {"text": caption.text, **nothing}
    assert [hit["video_id"] for hit in by_text["results"]] == [hit["video_id"] for hit in by_id["results"]]
    scores = np.array([[hit["score"] for hit in one["results"]] for one in (by_text, by_id)])
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-6)
    assert {**by_typed_id, "seconds": 0} == {**by_id, "seconds": 0}


def test_json_has_the_documented_fields(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    trained.search("--query_id", "E01#enc#0", "--json", "--topk", "3")
    (answer,) = answers(capsys)
    assert answer["schema"] == "a3prvr.search/2"
    paging, judged = {"offset", "next_offset"}, {"confidence", "confident"}
    assert set(answer) == {"schema", "query", "corpus", "note", "seconds", "results", *paging, *judged}
    assert set(answer["query"]) == {"text", "caption_id", "video_id", "right_rank", "like"}
    assert answer["corpus"] == {"split": "test", "videos": 8}
    assert answer["note"] is None
    assert 0 < answer["seconds"] < 10
    assert [hit["rank"] for hit in answer["results"]] == [1, 2, 3]
    for hit in answer["results"]:
        assert set(hit) == {"rank", "video_id", "score", "scores", "best_frames", "duration", "moment", "timeline"}
        assert hit["score"] == hit["scores"]["fused"]
        moment = best_moment(hit["timeline"])
        expected: dict[str, Any] = {name: getattr(moment, name) for name in ("start", "end", "peak", "score")}
        assert hit["duration"] is None
        assert hit["moment"] == {**expected, "start_seconds": None, "end_seconds": None, "peak_seconds": None}


@pytest.mark.usefixtures("with_durations")
def test_several_moments_of_a_video(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    """One more field; all else is as without. The first moment is the one that is shown alone."""
    query = ["--query_id", "E01#enc#0", "--topk", "8"]
    for more in ([], ["--moments_per_video", "1"], ["--moments_per_video", "3"]):
        trained.search(*query, "--json", *more)
    plain, one, several = ([{**hit} for hit in answer["results"]] for answer in answers(capsys))
    assert plain == one
    assert any(len(hit["moments"]) > 1 for hit in several)
    for hit in several:
        moments = hit.pop("moments")
        assert moments[0] == hit["moment"]
        expected = best_moments(hit["timeline"], 3)
        for name in ("start", "end", "peak", "score"):
            assert [moment[name] for moment in moments] == [getattr(moment, name) for moment in expected]
        if hit["duration"] is not None:
            assert [m["end_seconds"] for m in moments] == [m.end * hit["duration"] for m in expected]
    assert several == plain
    trained.search(*query)
    alone = capsys.readouterr().out.splitlines()
    trained.search(*query, "--moments_per_video", "3")
    shown = capsys.readouterr().out.splitlines()
    assert [line for line in shown[1:] if not line.startswith("     also ")] == alone[1:]
    assert len(shown) > len(alone)
    assert any(re.fullmatch(r"     also \d+\.\d-\d+\.\d s \(-?0\.\d{4}\)(;.*)?", line) for line in shown)


@pytest.fixture
def with_durations(trained: Trained) -> Iterator[Path]:
    path = trained.data.test_txt.with_name("demoval.moments.jsonl")
    rows = [{"cap_id": f"E{n:02d}#enc#0", "start": 1, "end": 2, "duration": 10 + n} for n in range(7)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    yield path
    path.unlink()


@pytest.mark.usefixtures("with_durations")
def test_seconds_are_given_where_a_duration_is_known(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    trained.search("--query_id", "E01#enc#0", "--json")
    (answer,) = answers(capsys)
    for hit in answer["results"]:
        moment, duration = hit["moment"], hit["duration"]
        if hit["video_id"] == "E07":
            assert duration is moment["start_seconds"] is None
        else:
            assert duration == 10 + int(hit["video_id"][1:])
            for name in ("start", "end", "peak"):
                assert moment[f"{name}_seconds"] == pytest.approx(moment[name] * duration)


def test_text_shows_the_results_and_marks_the_right_video(
    trained: Trained, capsys: pytest.CaptureFixture[str], with_durations: Path
) -> None:
    trained.search("--query_id", "E01#enc#0", "--topk", "8")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("E01#enc#0: a person ")
    assert "its own video E01 has rank " in lines[1]
    assert len(lines) == 10
    for line in lines[2:]:
        video_id = line.split()[1]
        assert ("* E01 " in line) == (video_id == "E01")
        assert (" frame" if video_id == "E07" else " s of ") in line
        assert line.count("[") == line.count("]") == 1


def test_pages_have_each_video_once(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--query_id", "E01#enc#0"], ["a person"], ["--like", "E01@10-30%"]):
        trained.search(*words, "--json", "--topk", "100")
        (whole,) = answers(capsys)
        offset, found = 0, []
        while offset is not None:
            trained.search(*words, "--json", "--topk", "3", "--offset", str(offset))
            (page,) = answers(capsys)
            found += page["results"]
            offset = page["next_offset"]
        assert found == whole["results"]


def test_a_moment_of_a_video_finds_it_first(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    trained.search("--like", "E03@45%", "--json", "--text_encoder", "nowhere")
    (answer,) = answers(capsys)
    assert answer["query"]["like"] == {"video_id": "E03", "start": 0.45, "end": 0.45}
    assert answer["results"][0]["video_id"] == "E03"
    assert answer["results"][0]["score"] == pytest.approx(1, abs=1e-5)
    trained.search("--like", "E03@45%")
    assert capsys.readouterr().out.startswith("moments like E03@45%  (8 videos, ")


def test_python_finds_what_the_command_line_finds(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    trained.search("a person", "--json", "--topk", "4", "--split", "both", "--moments_per_video", "2")
    (expected,) = answers(capsys)
    searcher = search.open_searcher(trained.checkpoint, device=-1, split="both", moments_per_video=2)
    found = json.loads(json.dumps(as_json(searcher.search("a person", 4), searcher.split, len(searcher.video_ids))))
    assert {**found, "seconds": 0} == {**expected, "seconds": 0}


def test_a_server_follows_its_index(
    trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("method.serving.source.CHECK_EVERY", 0.0)
    words = ["--eval_ckpt", str(trained.checkpoint), "--device", "-1", "--index_dir", str(tmp_path)]

    def settled() -> Searcher:
        source.current()
        source.wait()
        return source.current()

    source = search.load_source(read_options(words, extra=add_flags, saved=saved_options))
    first = settled()
    first.load_encoder()
    assert settled() is first
    trained.search("--query_id", "E01#enc#0", "--index_dir", str(tmp_path), "--rebuild")
    second = settled()
    assert second is not first
    assert second.has_encoder
    found, again = (own.search_caption("E01#enc#0", 8) for own in (first, second))
    assert found.hits == again.hits
    assert second.confidence.calibration is None
    with own_log_handlers():
        calibrate_search.main(words)
    assert settled().confidence.calibration is not None
    with own_log_handlers():
        index.main(
            ["remove", "--eval_ckpt", str(trained.checkpoint), "--index_dir", str(tmp_path), found.hits[0].video_id]
        )
    assert [hit.video_id for hit in settled().search_caption("E01#enc#0", 8).hits] == [
        hit.video_id for hit in found.hits[1:]
    ]
    with own_log_handlers():
        index.main(
            ["add", "--eval_ckpt", str(trained.checkpoint), "--index_dir", str(tmp_path), found.hits[0].video_id]
        )
    assert settled().search_caption("E01#enc#0", 8).hits == found.hits
    (tmp_path / "broken").write_bytes(b"broken")
    (tmp_path / "broken").replace(tmp_path / "manifest.json")
    kept = settled()
    assert kept.search_caption("E01#enc#0", 8).hits == found.hits
    assert "cannot be opened, so the earlier one is searched" in caplog.text
    assert "manifest.json" in str(source.error)


def test_the_session_of_the_documentation(trained: Trained) -> None:
    (session,) = (fence.code for fence in fences(REPOSITORY / "docs" / "search.md") if fence.language == "python")
    assert session.count("results/charades/a3prvr/RUN/model.ckpt") == 1
    code = session.replace("results/charades/a3prvr/RUN/model.ckpt", str(trained.checkpoint))
    test = doctest.DocTestParser().get_doctest(code, {}, "docs/search.md", None, None)
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test)
    assert (result.failed, result.attempted > 3) == (0, True)


@pytest.mark.parametrize(("flags", "message"), [
    ({"no_such_flag": 1}, "unrecognized arguments: --no_such_flag=1"),
    ({"json": True}, "unrecognized arguments: --json"),
    ({"split": "half"}, "argument --split: invalid choice"),
    ({"moments_per_video": 0}, "--moments_per_video 0: expected at least 1"),
    ({"eval_amp": "bf8"}, "--eval_amp"),
])  # fmt: skip
def test_mistakes_in_python_are_named(trained: Trained, flags: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        search.open_searcher(trained.checkpoint, **flags)


def test_flags_in_python() -> None:
    flags = {"device": -1, "rebuild": False, "zero_shot": True, "pin_memory": False, "dataset_name": None, "x": [1, 2]}
    assert search._words(flags) == ["--device=-1", "--zero_shot", "--pin_memory=False", "--x", "1", "2"]


@pytest.mark.parametrize(("split", "videos"), [("train", {"T"}), ("both", {"T", "E"})])
def test_other_splits_are_searched_with_the_same_index(
    trained: Trained, capsys: pytest.CaptureFixture[str], split: str, videos: set[str]
) -> None:
    trained.search("--query_id", "E01#enc#0", "--json", "--topk", "100", "--split", split)
    (answer,) = answers(capsys)
    assert {hit["video_id"][0] for hit in answer["results"]} == videos
    assert answer["corpus"] == {"split": split, "videos": len(answer["results"])}
    assert (answer["query"]["right_rank"] is None) == ("E" not in videos)
    assert (trained.run / "model.ckpt.index" / "manifest.json").exists()


def test_the_index_is_used_refused_and_rebuilt(
    trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = ("--query_id", "E01#enc#0", "--index_dir", str(tmp_path))
    trained.search(*words)
    manifest = tmp_path / "manifest.json"
    made = manifest.read_bytes()
    trained.search(*words)
    assert manifest.read_bytes() == made
    with pytest.raises(InputError, match="another --eval_amp; rebuild it with --rebuild"):
        trained.search(*words, "--eval_amp", "bf16")
    assert manifest.read_bytes() == made
    caplog.clear()
    trained.search(*words, "--eval_amp", "bf16", "--rebuild_outdated")
    assert "built from another --eval_amp" in caplog.text
    assert manifest.read_bytes() != made
    trained.search(*words, "--rebuild")
    assert len(list(tmp_path.glob("segment-*"))) == 1


@pytest.mark.parametrize(("words", "message"), [
    (("--topk", "0", "x"), "--topk 0: expected at least 1"),
    (("--moments_per_video", "0", "x"), "--moments_per_video 0: expected at least 1"),
    (("--port", "70000", "--serve"), "--port 70000"),
    (("a man", "--query_id", "E01#enc#0"), "a sentence and --query_id given, expected one of them"),
    (("a man", "--serve"), "a sentence and --serve given"),
    (("--query_id", "E99#enc#0"), r"no caption 'E99#enc#0' in the dataset; ids look like 'E00#enc#0'"),
    ((" ", "--json"), "an empty query"),
    (("a caf\udce9",), "a byte that is not UTF-8"),
    (("", "--query_id", ""), "a sentence and --query_id given"),
    (("--index_dir", ""), "argument --index_dir: expected a path, found ''"),
    (("--video_dir", "", "--serve"), "argument --video_dir: expected a path, found ''"),
    (("--moments", "typo.jsonl", "a man"), "--moments .*typo.jsonl: no such file"),
    (("x" * (MAX_CHARACTERS + 1),), "501 characters, expected at most 500"),
    (("a man", "--text_encoder", "nowhere"), "download_roberta.py"),
    (("--serve", "--video_dir", "nowhere"), "--video_dir .*nowhere: no such folder"),
    (("a man", "--like", "E01@3"), "a sentence and --like given, expected one of them"),
    (("--serve", "--offset", "3"), "--offset and --serve given, expected one of them"),
    (("a man", "--offset", "-1"), "--offset -1: expected at least 0"),
    (("--like", "E01"), "'E01': expected VIDEO@TIME"),
    (("--like", "T01@3%"), "no searched video has the id 'T01'"),
])  # fmt: skip
def test_mistakes_are_named(trained: Trained, words: Sequence[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        trained.search(*words)


def test_the_checkpoint_is_required() -> None:
    with own_log_handlers(), pytest.raises(InputError, match="--eval_ckpt FILE or --zero_shot is missing"):
        search.main(["a man", "--dataset_name", "demo"])


def test_a_long_sentence_without_quotes_is_noted(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    trained.search(*["a", "person", "opens", "the", "door", "and", "lifts", "a", "box"], "--topk", "2", "--json")
    (answer,) = answers(capsys)
    assert answer["query"]["text"] == "a person opens the door and lifts a box"
    assert "the model reads the first 5 tokens" in answer["note"]
    assert len(answer["results"]) == 2


def test_a_mistyped_caption_id_is_noted(
    trained: Trained, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained.search("E01#enc#99", "--json")
    (answer,) = answers(capsys)
    assert answer["note"] == "no caption 'E01#enc#99' in the dataset, so this is the answer to a sentence"
    assert (answer["query"]["text"], answer["query"]["caption_id"]) == ("E01#enc#99", None)
    pipe(monkeypatch, b"E01#enc#99\nE01#enc#0\n")  # without text encoder the other line is answered
    with pytest.raises(InputError, match="1 of 2 queries could not be answered"):
        trained.search("--json", "--text_encoder", "nowhere")
    failed, found = answers(capsys)
    assert failed["error"].startswith("line 1: no caption 'E01#enc#99' in the dataset, and not found as a sentence: ")
    assert found["query"]["caption_id"] == "E01#enc#0"


def test_a_closed_standard_output_is_an_error(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(InputError, match="standard output is closed"):
        trained.search("--query_id", "E01#enc#0")


def pipe(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), "ascii"))  # whatever the locale says


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_every_line_of_a_pipe_that_is_not_blank_is_answered(
    trained: Trained, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    pipe(monkeypatch, "E01#enc#0\r\n\r\n \t\na café\n E02#enc#0 \n\na person".encode(encoding))
    trained.search("--json", "--topk", "1")
    found = [answer["query"] for answer in answers(capsys)]
    assert [query["caption_id"] for query in found] == ["E01#enc#0", None, "E02#enc#0", None]
    assert [found[1]["text"], found[3]["text"]] == ["a café", "a person"]


def test_a_line_that_cannot_be_answered_is_named_and_costs_no_other(
    trained: Trained, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = b"a person\n\n" + b"x" * 501 + b"\na caf\xe9 opens\nE01#enc#0\n"
    reasons = ["line 3: a query of 501 characters, expected at most 500", "line 4: byte 6 (0xe9) is not UTF-8 text"]
    for flags in (["--json"], []):
        pipe(monkeypatch, lines)
        with pytest.raises(InputError, match="2 of 4 queries could not be answered"):
            trained.search("--topk", "1", *flags)
        captured = capsys.readouterr()
        assert [line for line in captured.err.splitlines() if line.startswith("error")] == [
            f"error: {reason}" for reason in reasons
        ]
        if flags:
            found = [json.loads(line) for line in captured.out.splitlines()]
            assert [answer.pop("error", None) for answer in found] == [None, *reasons, None]
            assert all(set(answer) == set(found[0]) for answer in found)
            assert [len(answer["results"]) for answer in found] == [1, 0, 0, 1]
            assert [answer["query"]["text"] for answer in found[1:3]] == ["x" * 500, "a caf\ufffd opens"]
        else:
            assert captured.out.count("(8 videos, ") == 2


def test_without_a_text_encoder_a_pipe_of_captions_is_answered_and_one_of_sentences_fails_once(
    trained: Trained, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe(monkeypatch, b"E01#enc#0\na person\na dog\n")
    with pytest.raises(InputError, match=r"download_roberta\.py"):
        trained.search("--json", "--text_encoder", "nowhere")
    captured = capsys.readouterr()
    assert (len(captured.out.splitlines()), captured.err.count("error")) == (1, 0)


def test_an_empty_sentence_is_a_mistake_and_leaves_a_pipe_alone(
    trained: Trained, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe(monkeypatch, b"a person\n")
    for words in ([""], ["", " "], ["--query_id", ""]):
        with pytest.raises(InputError, match=r"an empty query|no caption ''"):
            trained.search(*words)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="no sentence given, and standard input is closed"):
        trained.search()
    assert not answers(capsys)


def test_ids_may_begin_with_dashes(trained: Trained) -> None:
    for caption_id in ("-x#enc#0", "--x-y#enc#0"):
        for words in (["--query_id", caption_id], [f"--query_id={caption_id}"]):
            with pytest.raises(InputError, match=f"no caption '{caption_id}' in the dataset"):
                trained.search(*words)
        with pytest.MonkeyPatch.context() as patch:
            asked: list[str] = []
            patch.setattr(Searcher, "search", lambda self, query, *_, asked=asked: asked.append(query))
            patch.setattr(Terminal, "show", lambda *_: None)
            trained.search(caption_id, "--topk", "1")
            assert asked == [caption_id]
    with pytest.raises(InputError, match="unrecognized arguments: --video_dri=a#b"):
        trained.search("a man", "--video_dri=a#b")


def test_a_terminal_without_blocks_gets_ascii(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    trained.search("--query_id", "E01#enc#0")
    lines = written.getvalue().decode("ascii").splitlines()
    assert all(set(line.split("[")[1].split("]")[0]) <= set(ASCII_BLOCKS) for line in lines[2:])


def test_the_prompt_answers_until_an_empty_line_and_survives_mistakes(
    trained: Trained, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    undecodable = UnicodeDecodeError("utf-8", b"caf\xe9", 3, 4, "cut off")
    lines: list[str | Exception] = ["E01#enc#0", "x" * 600, undecodable, "a person opens the door", ""]
    typed = iter(lines)

    def read(prompt: str) -> str:
        line = next(typed)
        if isinstance(line, Exception):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    trained.search("--topk", "1")
    captured = capsys.readouterr()
    assert captured.err.count("search> ") == 5
    assert "its own video E01 has rank" in captured.out
    assert captured.out.count("(8 videos, ") == 2
    assert "expected at most 500" in captured.err
    assert "error: byte 4 (0xe9) is not utf-8 text" in captured.err


timelines = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=200)


def hit_of(timeline: Sequence[float], duration: float | None = None) -> Hit:
    return Hit(1, "v", {"fused": 0.5}, {"action": 0.5}, tuple(timeline), best_moment(list(timeline)), duration)


@given(timelines, st.integers(1, 60))
def test_a_drawn_timeline_keeps_its_peak_and_brackets_it(timeline: list[float], columns: int) -> None:
    hit = hit_of(timeline)
    low, high = min(timeline), max(timeline)
    drawn = draw_timeline(hit, (low, high), columns, BLOCKS)
    assert len(drawn) == columns + 2
    before, rest = drawn.split("[")
    inside, after = rest.split("]")
    levels = before + inside + after
    assert set(levels) <= set(BLOCKS)
    if high > low:
        assert BLOCKS[-1] in inside
    # The slow way: of all frames that overlap a column, the highest.
    for column, block in enumerate(levels):
        own = [
            score
            for frame, score in enumerate(timeline)
            if frame * columns < (column + 1) * len(timeline) and (frame + 1) * columns > column * len(timeline)
        ]
        share = (max(own) - low) / (high - low) if high > low else 0.0
        assert abs(BLOCKS.index(block) - share * 7) <= 0.5 + 1e-6
    assert len(before) <= math.floor(hit.moment.peak * columns) < len(before) + len(inside)


def test_a_moment_is_said_in_frames_or_seconds() -> None:
    moment = Moment(start=0.25, end=0.75, peak=0.3, score=0.5)
    hit = Hit(1, "v", {"fused": 0.5}, {"action": 0.5}, (0.0,) * 8, moment, None)
    assert span_text(hit) == "frames 3-6 of 8"
    assert span_text(replace(hit, duration=62.0)) == "15.5-46.5 s of 62.0 s"
    assert span_text(replace(hit, moment=replace(moment, end=0.375))) == "frame 3 of 8"


@pytest.mark.parametrize("columns", [20, 80, 200])
def test_lines_fit_the_terminal_when_it_is_wide_enough(columns: int) -> None:
    answer = make_searcher(kitchen(), {"v03": 61.5}).search("a person opens the door", 14)
    lines = as_text(answer, 14, BLOCKS, columns).splitlines()
    assert len({len(line) for line in lines[1:]}) == 1
    if columns >= 80:
        assert all(len(line) <= columns for line in lines)


def test_what_a_terminal_would_obey_is_taken_out() -> None:
    answer = make_searcher({"v\x1b[2Jw": ["a \x1b]0;title\x07 man"], "u": ["b"]}).search("v\x1b[2Jw#enc#0", 2)
    text = as_text(answer, 2, BLOCKS, 80)
    assert "\x1b" not in text
    assert "\x07" not in text
