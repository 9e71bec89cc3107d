"""Time and operations of a step's edited captions: encoded naively, as training does, and drawn from a cache.

    python benchmarks/text_encoder.py                                            # Charades: captions of 7 words
    python benchmarks/text_encoder.py --dataset activitynet --layers 24 --share 0.1
    python benchmarks/text_encoder.py --dataset activitynet --root_path DIR      # those of a dataset in DIR
    python benchmarks/text_encoder.py --amp bf16                                 # ours in half precision
    python benchmarks/text_encoder.py --num_workers 4                            # which read ahead of the steps

The encoder has the width of roberta-large, the given depth, random weights. Naive is what the published program does:
every caption gets all its copies, a placeholder sentence where it has no edit, and all are padded to the longest
together. "Prepared" is what is left to the process that trains where data workers do the rest. Then whole steps of the
launch without edited captions and with them, several in a row and fed by a loader as in a training. Times are of the
clock on the wall, since the tokeniser has threads of its own and the cache lies on a disk.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import method  # noqa: F401 (before torch, whose threads it tells how to wait)

import torch
from easydict import EasyDict
from transformers import AutoTokenizer, RobertaConfig, RobertaModel

from benchmarks.fed_step import fed_step
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
from benchmarks.step import random_batch
from benchmarks.synthetic_captions import write_captions
from method.config.options import read_options
from method.config.settings import negatives_settings
from method.data.captions import Caption, read_captions
from method.data.edits import NegativeSource
from method.negatives.build_cache import Pools, make_cache
from method.negatives.cached import CachedNegatives
from method.negatives.editor import CaptionEditor
from method.negatives.online import OnlineNegatives
from method.negatives.source import cache_fingerprint, read_vocabularies
from method.text.encoder import TextEncoder
from tests.helpers.tiny_text_encoder import make_text_encoder

# Captions and copies of a launch's step: 128 videos with all their captions.
STEPS = {"charades": (297, 8), "activitynet": (477, 12)}
PLACEHOLDER = "Hello"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the times of the ways to the edits, and of a step with and without them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=list(STEPS), default="charades")
    parser.add_argument("--root_path", help="folder of the dataset, whose captions and vocabularies are read; without "
        "it both are made up")  # fmt: skip
    parser.add_argument("--layers", type=int, default=2, help="of the encoder; roberta-large has 24")
    parser.add_argument("--share", type=float, default=1.0, help="share of a step's captions that is encoded")
    parser.add_argument("--amp", choices=("off", "bf16"), default="off", help="of ours")
    parser.add_argument("--num_workers", type=int, default=2 if DEVICE.type == "cuda" else 0)
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
        steps = edits.step_programs(batch, given.num_workers)
        # More in a row than the workers have made ready.
        of_step = measure(steps, "step without edits", given.rounds, times=1 + 4 * given.num_workers)
    rest = of_step["step without edits"]
    of_edits = of_step["step with cached edits"] - rest
    print(f"{of_edits:.0f} GFLOP of the query encoders for the edits beside {rest:.0f} of the rest of the step")


def measure(
    programs: Mapping[str, Callable[[], object]], baseline: str, rounds: int, times: int = 1
) -> dict[str, float]:
    """Print the times of the programs, each run `times` in a row, and of a plain product beside them; their GFLOP."""
    counts = {name: operations(program) / 1e9 for name, program in programs.items()}
    plain, count = plain_product(DEVICE)
    repeated = {name: partial(repeat, program, times) for name, program in programs.items()}
    seconds = alternate({**repeated, PLAIN_PRODUCT: plain}, rounds, time.perf_counter)
    seconds |= {name: [own / times for own in seconds[name]] for name in programs}
    print(compare({name: seconds[name] for name in programs}, baseline))
    multiplying = {name: own for name, own in counts.items() if own}
    print(beside_floor(seconds, {**multiplying, PLAIN_PRODUCT: count / 1e9}, PLAIN_PRODUCT, "GFLOP"))
    return counts


def repeat(program: Callable[[], object], times: int) -> None:
    """Run a program several times."""
    for _ in range(times):
        program()


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
        settings = negatives_settings(options)
        vocabularies = read_vocabularies(settings, {caption.id for caption in captions}, settings.kinds)
        self.editors = [CaptionEditor(captions, vocabulary) for vocabulary in vocabularies]
        self.counts = settings.counts
        self.encoder = TextEncoder(options.text_encoder, 1024, options.max_desc_l, DEVICE, precision=options.amp)
        made_from = cache_fingerprint(settings, captions, vocabularies)
        make_cache(cache, Pools(captions, self.editors, self.counts, options.seed), made_from, self.encoder)
        self.cached = CachedNegatives(cache, captions, made_from, self.counts, options.seed)
        self.online = OnlineNegatives(self.editors, self.counts, self.encoder, options.seed)
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
        """The three ways, and what is left of two of them."""
        model = RobertaModel.from_pretrained(self.options.text_encoder, add_pooling_layer=False).eval().to(DEVICE)

        @torch.inference_mode()
        def naive() -> None:
            model(**self.naive_tokens().to(DEVICE))

        return {
            "naive": as_published(naive),
            "online": as_trained(lambda: self.online.queries(self.online.prepare(self.few, 0), DEVICE), DEVICE),
            "online, prepared": as_trained(self.prepared(self.online), DEVICE),
            "cache": lambda: self.cached.queries(self.cached.prepare(self.few, 0), DEVICE),
            "cache, prepared": self.prepared(self.cached),
        }

    def step_programs(self, captions: Sequence[Caption], workers: int) -> dict[str, Callable[[], object]]:
        """Steps with the edits of all captions, and without; without workers the online ones only add their time."""
        batch = random_batch("full", captions, [self.encoder.count_rows([caption.text]) for caption in captions])
        sources: dict[str, NegativeSource | None] = {"step without edits": None, "step with cached edits": self.cached}
        if workers:
            sources["step with online edits"] = self.online
        return {name: fed_step(batch, source, self.options.amp, workers) for name, source in sources.items()}

    def prepared(self, source: NegativeSource) -> Callable[[], object]:
        """What is left of a way in the process that trains."""
        edits = source.prepare(self.few, 0)
        edits = edits.pin_memory() if DEVICE.type == "cuda" else edits
        return lambda: source.queries(edits, DEVICE)


if __name__ == "__main__":
    main()
