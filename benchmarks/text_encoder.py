"""Time and operations of a step's edited captions: encoded naively, as training does, and drawn from a cache.

    python benchmarks/text_encoder.py                                            # Charades: captions of 7 words
    python benchmarks/text_encoder.py --dataset activitynet --layers 24 --share 0.1
    python benchmarks/text_encoder.py --dataset activitynet --root_path DIR      # those of a dataset in DIR
    python benchmarks/text_encoder.py --amp bf16                                 # ours in half precision

The encoder has the width of roberta-large, the given depth, random weights. Naive is what the published program does:
every caption gets all its copies, a placeholder sentence where it has no edit, and all are padded to the longest
together. Then a whole training step of the launch without edited captions and with them from the cache. Times are of
the clock on the wall, since the tokeniser has threads of its own and the cache lies on a disk.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from easydict import EasyDict
from transformers import AutoTokenizer, RobertaConfig, RobertaModel

from benchmarks.made_up_captions import write_captions
from benchmarks.measure import (
    DEVICE,
    PLAIN_PRODUCT,
    alternate,
    as_published,
    as_trained,
    beside_floor,
    compare,
    machine,
    operations,
    plain_product,
)
from benchmarks.step import LAUNCH, LOSSES, random_batch
from method.config import read_options
from method.data.cached_negatives import CachedNegatives
from method.data.captions import Caption, read_captions
from method.data.negatives import CaptionEditor
from method.data.vocabulary import KINDS
from method.model.retrieval import RetrievalModel
from method.model.text_encoder import TextEncoder
from method.training.loop import LoopSettings, Training
from method.training.make_negative_cache import Pools, make_cache
from method.training.negative_queries import OnlineNegatives, cache_fingerprint, read_vocabularies
from method.training.optimizer import Schedule
from tests.tiny_text_encoder import make_text_encoder

# Captions and copies of a launch's step: 128 videos with all their captions.
STEPS = {"charades": (297, 8), "activitynet": (477, 12)}
PLACEHOLDER = "Hello"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the times of the three ways, and of a step with and without edits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=list(STEPS), default="charades")
    parser.add_argument("--root_path", help="folder of the dataset, whose captions and vocabularies are read; without "
        "it both are made up")  # fmt: skip
    parser.add_argument("--layers", type=int, default=2, help="of the encoder; roberta-large has 24")
    parser.add_argument("--share", type=float, default=1.0, help="share of a step's captions that is encoded")
    parser.add_argument("--amp", choices=("off", "bf16"), default="off", help="of ours")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    captions, copies = STEPS[given.dataset]
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--dataset_name", given.dataset, "--root_path", given.root_path or folder, "--neg_query_loss", "both"]
        flags += ["--neg_action_num", str(copies), "--neg_object_num", str(copies), "--q_feat_size", "1024"]
        flags += ["--text_encoder", f"{folder}/encoder", "--amp", given.amp]
        options = read_options(flags)
        if given.root_path is None:
            write_captions(options, given.dataset, captions)
        batch = read_captions(options.caption_train_txt)[:captions]
        make_encoder(options.text_encoder, [caption.text for caption in batch], given.layers)
        few = batch[: max(1, round(given.share * captions))]
        edits = Edits(options, batch, few, Path(folder) / "cache")
        print(
            f"{machine()}; {given.dataset}, {len(few)} captions, {copies}+{copies} copies, {given.layers} layers, "
            f"amp {given.amp}"
        )
        print(edits.describe())
        measure(edits.programs(), "naive", given.rounds)
        of_step = measure(step_programs(batch, edits), "step without edits", given.rounds)
    rest = of_step["step without edits"]
    of_edits = of_step["step with cached edits"] - rest
    print(f"{of_edits:.0f} GFLOP of the query encoders for the edits beside {rest:.0f} of the rest of the step")


def measure(programs: Mapping[str, Callable[[], object]], baseline: str, rounds: int) -> dict[str, float]:
    """Print the times of the programs, and beside them those of a plain product; their GFLOP."""
    counts = {name: operations(program) / 1e9 for name, program in programs.items()}
    plain, count = plain_product(DEVICE)
    seconds = alternate({**programs, PLAIN_PRODUCT: plain}, rounds, time.perf_counter)
    print(compare({name: seconds[name] for name in programs}, baseline))
    multiplying = {name: own for name, own in counts.items() if own}
    print(beside_floor(seconds, {**multiplying, PLAIN_PRODUCT: count / 1e9}, PLAIN_PRODUCT, "GFLOP"))
    return counts


def make_encoder(folder: Path, sentences: Sequence[str], layers: int) -> None:
    """Save a RoBERTa of roberta-large's width with random weights."""
    make_text_encoder(folder, sentences, width=1024)
    config = RobertaConfig.from_pretrained(folder)
    config.num_hidden_layers, config.num_attention_heads, config.intermediate_size = layers, 16, 4096
    RobertaModel(config).save_pretrained(folder)


class Edits:
    """The edits of `few` of a step's captions, three ways to their token features, and the cache of all."""

    def __init__(self, options: EasyDict, captions: Sequence[Caption], few: Sequence[Caption], cache: Path) -> None:
        self.options, self.few = options, few
        vocabularies = read_vocabularies(options, {caption.id for caption in captions})
        self.editors = [CaptionEditor(captions, vocabulary) for vocabulary in vocabularies]
        self.counts = {kind: options[f"neg_{kind}_num"] for kind in KINDS}
        self.encoder = TextEncoder(options.text_encoder, 1024, options.max_desc_l, DEVICE, precision=options.amp)
        made_from = cache_fingerprint(options, captions, vocabularies)
        make_cache(cache, Pools(captions, self.editors, self.counts, options.seed), made_from, self.encoder)
        self.cached = CachedNegatives(cache, captions, made_from, self.counts, options.seed)
        self.tokenizer = AutoTokenizer.from_pretrained(options.text_encoder)

    def of(self, caption: Caption, editor: CaptionEditor) -> list[str]:
        """The edits of one caption, as the first epoch draws them."""
        return editor.edits(caption, self.counts[editor.kind], self.options.seed, 0, caption.id, editor.kind)

    def describe(self) -> str:
        """How many there are, and their tokens as they come, padded naively, and encoded by ours."""
        edits = [edit for editor in self.editors for caption in self.few for edit in self.of(caption, editor)]
        naive, count = self.naive_tokens()["input_ids"], self.encoder.count_rows
        distinct = list(dict.fromkeys(edits))
        return (
            f"{len(edits)} edits of {count(edits) / len(edits):.1f} tokens in the mean, {len(distinct)} distinct; "
            f"encoded naively: {len(naive)} sentences, {naive.numel()} tokens, padding included; by ours: "
            f"{count(distinct)} tokens"
        )

    def naive_tokens(self) -> Any:
        """All copies, padded to the longest together."""
        sentences = []
        for editor in self.editors:
            for caption in self.few:
                edits = self.of(caption, editor)
                sentences += edits + [PLACEHOLDER] * (self.counts[editor.kind] - len(edits))
        return self.tokenizer(sentences, padding=True, truncation=True, max_length=60, return_tensors="pt")

    def programs(self) -> dict[str, Callable[[], object]]:
        """The three ways."""
        online = OnlineNegatives(self.editors, self.counts, self.encoder, self.options.seed)
        model = RobertaModel.from_pretrained(self.options.text_encoder, add_pooling_layer=False).eval().to(DEVICE)

        @torch.inference_mode()
        def naive() -> None:
            model(**self.naive_tokens().to(DEVICE))

        return {
            "naive": as_published(naive),
            "online": as_trained(lambda: online.queries(online.prepare(self.few, 0), DEVICE), DEVICE),
            "cache": lambda: self.cached.queries(self.cached.prepare(self.few, 0), DEVICE),
        }


def step_programs(captions: Sequence[Caption], edits: Edits) -> dict[str, Callable[[], object]]:
    """Steps at the launch's size without edited captions and with those of the cache."""
    batch = random_batch("full", captions, [edits.encoder.count_rows([caption.text]) for caption in captions])
    batch = replace(batch, edits=edits.cached.prepare(captions, 0))

    def step(source: CachedNegatives | None, branches: tuple[str, ...]) -> Callable[[], object]:
        model = RetrievalModel(replace(LAUNCH, temperatures=branches)).train()
        settings = LoopSettings(100, 10, 20, -1, edits.options.amp, LOSSES, 0)
        training = Training(model, settings, Schedule(2.5e-4, 0.01, 1000), 0.01, DEVICE, source)
        return as_trained(lambda: training.step(batch), DEVICE)

    return {"step without edits": step(None, ()), "step with cached edits": step(edits.cached, ("action", "object"))}


if __name__ == "__main__":
    main()
