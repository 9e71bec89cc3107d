"""A tiny dataset in the published layout, the flags to train on it, and the command lines run inside the test."""

from __future__ import annotations

import contextlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from method import evaluate, train
from method.data.captions import Caption, read_captions
from method.runtime.files import read_json

WIDTHS = {"i3d_feat": 10, "clip_feat": 6}
QUERY_WIDTH = 8
STREAMS = {"action": ("i3d_feat", WIDTHS["i3d_feat"]), "object": ("clip_feat", WIDTHS["clip_feat"])}
VERBS = ("opens", "closes", "lifts", "drops", "holds", "cleans", "throws", "paints")
NOUNS = ("door", "box", "cup", "bag", "chair", "lamp", "book", "plate")
FUSED = ("--phrase_action_branch", "--flow_feat", "--cross_branch_fusion", "--deformable_attn")

Rows = npt.NDArray[Any]


class SmallDataset:
    """12 training and 8 evaluated videos with 2 or 3 captions each, below `root`.

    A video shows verb and noun pairs in turn; its streams and the tokens of its captions are noisy copies of vectors
    that belong to the words, so that there is something to learn.
    """

    def __init__(self, root: Path, training: int = 12, evaluated: int = 8) -> None:
        self.root = root
        folder = root / "dataset" / "demo_i3d"
        self.features = folder / "FeatureData" / "demo_clip_i3d_numpy.hdf5"
        self.texts = folder / "TextData" / "roberta_demo_query_feat.hdf5"
        self.train_txt = folder / "TextData" / "demotrain.caption.txt"
        self.test_txt = folder / "TextData" / "demoval.caption.txt"
        self.results = root / "results" / "demo" / "a3prvr"
        self.features.parent.mkdir(parents=True)
        self.texts.parent.mkdir(parents=True)
        self._write(training, evaluated)

    def _write(self, training: int, evaluated: int) -> None:
        random = np.random.default_rng(0)
        widths = (*WIDTHS.values(), QUERY_WIDTH)
        vectors = {word: [random.standard_normal(width) for width in widths] for word in VERBS + NOUNS}
        tags: dict[str, dict[str, dict[str, str]]] = {"action": {}, "object": {}}
        with h5py.File(self.features, "w") as videos, h5py.File(self.texts, "w") as texts:
            for split, path, count in (("T", self.train_txt, training), ("E", self.test_txt, evaluated)):
                lines = []
                for number in range(count):
                    video = f"{split}{number:02d}"
                    moments = [(random.choice(VERBS), random.choice(NOUNS)) for _ in range(2 + number % 2)]
                    for stream, rows_each, which in (("i3d_feat", 5, 0), ("clip_feat", 3, 1)):
                        rows = [vectors[moment[which]][which] for moment in moments for _ in range(rows_each)]
                        rows = rows[: len(rows) - number % 3]
                        videos[f"{video}/{stream}"] = _noisy(random, np.stack(rows))
                    for k, (verb, noun) in enumerate(moments):
                        caption = f"{video}#enc#{k}"
                        lines.append(f"{caption} a person {verb} the {noun}\n")
                        tokens = [vectors[verb][2], vectors[noun][2], *[np.zeros(QUERY_WIDTH)] * (1 + k)]
                        texts[caption] = _noisy(random, np.stack(tokens))
                        tags["action"][caption], tags["object"][caption] = {verb: "VBZ"}, {noun: "NN"}
                path.write_text("".join(lines))
        for kind, words in (("action", {"VBZ": list(VERBS)}), ("object", {"NN": list(NOUNS)})):
            (self.train_txt.parent / f"demo_id_{kind}_dict.json").write_text(json.dumps(tags[kind]))
            (self.train_txt.parent / f"demo_total_{kind}_dict.json").write_text(json.dumps(words))

    def flags(self, *more: str) -> list[str]:
        """The command line of a short training with both branches and deformable fusion; `more` come last and win."""
        flags = f"""--dataset_name demo --root_path {self.root} --device -1 --num_workers 0
            --visual_feat_dim {WIDTHS["i3d_feat"]} --visual_flow_feat_dim {WIDTHS["clip_feat"]}
            --q_feat_size {QUERY_WIDTH} --max_ctx_l 12 --max_desc_l 5 --hidden_size 16 --n_heads 4
            --deformable_heads 4 --deformable_offset_groups 4 --deformable_offset_num 3 --deformable_offset_scale 3
            --bsz 5 --n_epoch 2 --lr 0.01 --seed 7 --eval_context_bsz 3 --eval_query_bsz 4"""
        return [*flags.split(), *FUSED, *more]

    def videos_of(self, path: Path) -> list[str]:
        return list(dict.fromkeys(caption.video_id for caption in read_captions(path)))

    def captions(self) -> list[Caption]:
        return read_captions(self.test_txt)

    def right_videos(self) -> dict[str, list[str]]:
        """Labels with several right videos: those that show the same verb."""
        verbs = {caption.id: caption.text.split()[2] for caption in self.captions()}
        same = {verb: [name.split("#")[0] for name in verbs if verbs[name] == verb] for verb in VERBS}
        return {name: list(dict.fromkeys([name.split("#")[0], *same[verb]])) for name, verb in verbs.items()}

    def write_labels(self, path: Path, skip: int = 0) -> Path:
        """Write these labels, without those of the first `skip` captions."""
        rows = [
            {"query_id": caption.id, "caption": caption.text, "gt_video_ids": self.right_videos()[caption.id]}
            for caption in self.captions()[skip:]
        ]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return path

    def write_moments(self, path: Path) -> Path:
        """Write a moment of each evaluated caption: its part of the video, which the captions share evenly."""
        counts = Counter(caption.video_id for caption in self.captions())
        rows = []
        for caption in self.captions():
            length, place = 30.0 / counts[caption.video_id], int(caption.id.split("#")[2])
            rows.append({"cap_id": caption.id, "start": place * length, "end": (place + 1) * length, "duration": 30.0})
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return path


def _noisy(random: np.random.Generator, rows: Rows) -> Rows:
    return (rows + 0.2 * random.standard_normal(rows.shape)).astype(np.float32)


@contextlib.contextmanager
def own_log_handlers() -> Iterator[None]:
    """Remove the log handlers that a command adds, which would outlive the standard error of the test.

    Only those of a command: pytest has its own, of other classes, which come and go meanwhile.
    """
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.setLevel(level)
        for handler in [handler for handler in root.handlers if handler not in before]:
            if type(handler) in (logging.StreamHandler, logging.NullHandler):
                root.removeHandler(handler)


def run_train(arguments: Sequence[str], figures: bool = False) -> Path:
    """`python method/train.py` in this process; returns the folder of the run.

    Figures for TensorBoard take longer than the training and are drawn only with `figures`.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not figures:
            patch.setattr("method.evaluation.report.figures.figures_for_tensorboard", lambda evaluation: {})
        return _run(train.main, arguments)


def run_evaluate(arguments: Sequence[str]) -> Path:
    """`python method/evaluate.py` in this process; returns the folder of the results."""
    return _run(evaluate.main, arguments)


def _run(main: Callable[[Sequence[str]], Path], arguments: Sequence[str]) -> Path:
    with own_log_handlers():
        return main(arguments)


def history(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def metrics(run: Path) -> dict[str, Any]:
    """The metrics of a run by score."""
    content = read_json(run / "metrics.json")
    return {name: values for name, values in content.items() if isinstance(values, dict) and "sumr" in values}
