"""A dataset encoded from another layer and without special tokens: training, checkpoints, caches, search."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from method import search
from method.config.options import read_options
from method.data.captions import read_captions
from method.runtime.errors import InputError
from method.runtime.files import read_json, write_json
from method.training.checkpoint_file import read_checkpoint, write_checkpoint
from method.training.resume import saved_options
from tests.helpers.small_dataset import QUERY_WIDTH, SmallDataset, own_log_handlers, run_train
from tests.helpers.tiny_text_encoder import make_text_encoder
from utils import cache_negatives

SETTINGS = ("--text_layer", "-2", "--text_special_tokens", "drop")
NUMBERS = ("--neg_action_num", "2", "--neg_object_num", "2")
MATCHES = "matches the token features of 20 captions (mean cosine 1.0000)"
REMEDY = "use --text_layer -2 --text_special_tokens drop (mean cosine 1.0000)"


class World:
    """A dataset encoded like TVR, by plain transformers, and a run on it with hard negatives."""

    def __init__(self, root: Path) -> None:
        self.data = SmallDataset(root)
        captions = [*read_captions(self.data.train_txt), *self.data.captions()]
        encoder = make_text_encoder(root / "encoder", [caption.text for caption in captions], width=QUERY_WIDTH)
        tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()
        with h5py.File(self.data.texts, "r+") as file, torch.no_grad():
            for caption in captions:
                del file[caption.id]
                ids = tokenizer(caption.text, return_tensors="pt")
                file[caption.id] = model(**ids, output_hidden_states=True).hidden_states[-2][0, 1:-1].numpy()
        self.edits = ("--text_encoder", str(encoder), "--neg_query_loss", "both", *NUMBERS)
        self.messages: list[str] = []
        listener = logging.Handler()
        listener.emit = lambda record: self.messages.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger().addHandler(listener)
        self.run = run_train(self.flags("--description", "trained", "--save_every_steps", "1"))
        logging.getLogger().removeHandler(listener)
        self.checkpoint = self.run / "model.ckpt"

    def flags(self, *more: str) -> list[str]:
        return self.data.flags("--n_epoch", "1", *self.edits, *SETTINGS, *more)

    def search(self, *words: str, checkpoint: Path | None = None) -> None:
        with own_log_handlers():
            search.main(["--eval_ckpt", str(checkpoint or self.checkpoint), "--device", "-1", "--json", *words])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("settings"))


def scores(printed: str) -> list[Any]:
    """Videos and scores of each result."""
    answers = [json.loads(line)["results"] for line in printed.splitlines()]
    return [([hit["video_id"] for hit in hits], np.array([hit["score"] for hit in hits])) for hits in answers]


def test_training_checks_the_encoder_and_stores_the_settings(world: World) -> None:
    assert sum(MATCHES in line for line in world.messages) == 1
    options = read_checkpoint(world.checkpoint)["options"]
    assert (options["text_layer"], options["text_special_tokens"]) == (-2, "drop")


def test_search_encodes_with_the_settings_of_the_checkpoint(
    world: World, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caption = world.data.captions()[3]
    world.search("--query_id", caption.id)
    world.search(caption.text)
    assert "token features" not in caplog.text
    (videos, own), (found, typed) = scores(capsys.readouterr().out)
    assert videos == found
    np.testing.assert_allclose(typed, own, atol=1e-6)


def test_search_warns_of_wrong_settings_for_typed_sentences_only(
    world: World, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caption, others = world.data.captions()[3], ("--text_layer", "-1", "--text_special_tokens", "keep")
    world.search("--query_id", caption.id, *others)
    assert "token features" not in caplog.text
    world.search(caption.text, *others)
    (line,) = [message for message in caplog.messages if "token features" in message]
    assert "mean cosine" in line
    assert "expected at least 0.99" in line
    assert REMEDY in line
    (_, own), (_, typed) = scores(capsys.readouterr().out)
    assert np.abs(typed - own).max() > 1e-3
    with pytest.raises(InputError, match=r"--text_layer 7: .* has 2 layers, expected -3 to 2"):
        world.search(caption.text, "--text_layer", "7")


def test_an_older_checkpoint_uses_the_settings_of_its_dataset(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    content = read_checkpoint(world.checkpoint)
    for name in ("text_layer", "text_special_tokens"):
        del content["options"][name]
    write_checkpoint(tmp_path / "older.ckpt", content)
    world.search(world.data.captions()[3].text, checkpoint=tmp_path / "older.ckpt")
    assert REMEDY in caplog.text  # demo.yaml names no settings, so they are the defaults
    caplog.clear()
    world.search(world.data.captions()[3].text, *SETTINGS, checkpoint=tmp_path / "older.ckpt")
    assert "token features" not in caplog.text
    capsys.readouterr()


def test_a_run_cannot_be_resumed_with_other_settings(world: World) -> None:
    with pytest.raises(InputError, match="--text_layer was -2, is -1"):
        run_train(["--resume", str(world.run), "--n_epoch", "2", "--text_layer", "-1"])


@pytest.mark.parametrize(("edits", "expected"), [("both", (-1, "keep")), (None, (-2, "drop"))])
def test_a_run_without_recorded_settings_resumes_with_the_former_ones(
    world: World, tmp_path: Path, edits: str | None, expected: tuple[int, str]
) -> None:
    options = {name: value for name, value in read_json(world.run / "opt.json").items() if name[:5] != "text_"}
    write_json(tmp_path / "opt.json", {**options, "dataset_name": "tvr", "neg_query_loss": edits})
    resumed = read_options(["--resume", str(tmp_path)], saved=saved_options)
    assert (resumed.text_layer, resumed.text_special_tokens) == expected


def test_the_encoder_is_checked_before_a_cache_is_built(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    cache_negatives.main(world.flags("--neg_cache", str(tmp_path / "cache")))
    assert MATCHES in caplog.text
    cache_negatives.main(world.flags("--neg_cache", str(tmp_path / "wrong"), "--text_layer", "-1"))
    assert REMEDY in caplog.text
    with pytest.raises(InputError, match="built from something else: --text_layer -1, expected -2"):
        run_train(world.flags("--neg_cache", str(tmp_path / "wrong"), "--description", "wrong"))
