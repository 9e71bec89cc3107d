"""Time and FLOPs of the edited captions of a step: encoded naively, encoded as training does, and read from a cache.

    python benchmarks/text_encoder.py                                            # Charades: captions of 7 words
    python benchmarks/text_encoder.py --dataset activitynet --layers 24 --share 0.1
    python benchmarks/text_encoder.py --dataset activitynet --root_path DIR      # captions of a dataset in DIR
    python benchmarks/text_encoder.py --amp bf16                                 # our encoder in bf16
    python benchmarks/text_encoder.py --num_workers 4                            # prefetching data workers

The encoder has the width of roberta-large, the given number of layers and random weights. "naive" is the published
code: every caption has all its edits, with a placeholder sentence for missing ones, padded to the longest. "prepared"
is the part that is left to the training process when data workers do the rest. Then whole training steps with and
without edited captions are timed, several in a row and fed by a data loader. Times are wall-clock times, since the
tokenizer has its own threads and the cache is on a disk.
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
    import method  # noqa: F401 (sets OpenMP variables before torch is imported)

import torch
from easydict import EasyDict

from benchmarks.measure import (
    DEVICE,
    PLAIN_PRODUCT,
    alternate,
    as_published,
    as_trained,
    compare,
    compare_to_bound,
    machine,
    operations,
    plain_product,
)
from benchmarks.step import fed_step, random_batch
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
from method.runtime.errors import run_command
from method.runtime.hub_environment import check_timeouts
from method.text.encoder import TextEncoder

# Captions of a step (128 videos with all their captions), and edits per caption of each kind.
STEPS = {"charades": (297, 8), "activitynet": (477, 12)}
PLACEHOLDER = "Hello"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the times of the edits, and of a step with and without them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=list(STEPS), default="charades")
    parser.add_argument("--root_path", help="folder of the dataset with captions and vocabularies (default: "
        "synthetic ones)")  # fmt: skip
    parser.add_argument("--layers", type=int, default=2, help="layers of the encoder; roberta-large has 24")
    parser.add_argument("--share", type=float, default=1.0, help="share of the captions of a step that has edits")
    parser.add_argument("--amp", choices=("off", "bf16"), default="off", help="our precision")
    parser.add_argument("--num_workers", type=int, default=2 if DEVICE.type == "cuda" else 0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    check_timeouts()  # a wrong one makes the import of transformers fail
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
        # More steps in a row than the workers prefetch.
        of_step = measure(steps, "step without edits", given.rounds, times=1 + 4 * given.num_workers)
    rest = of_step["step without edits"]
    of_edits = of_step["step with cached edits"] - rest
    print(f"{of_edits:.0f} GFLOP of the query encoders for the edits beside {rest:.0f} of the rest of the step")


def measure(
    programs: Mapping[str, Callable[[], object]], baseline: str, rounds: int, times: int = 1
) -> dict[str, float]:
    """Print the times of the programs, each run `times` in a row, and of a large matmul; return their GFLOP."""
    counts = {name: operations(program) / 1e9 for name, program in programs.items()}
    plain, count = plain_product(DEVICE)
    repeated = {name: partial(repeat, program, times) for name, program in programs.items()}
    seconds = alternate({**repeated, PLAIN_PRODUCT: plain}, rounds, time.perf_counter)
    seconds |= {name: [own / times for own in seconds[name]] for name in programs}
    print(compare({name: seconds[name] for name in programs}, baseline))
    multiplying = {name: own for name, own in counts.items() if own}
    print(compare_to_bound(seconds, {**multiplying, PLAIN_PRODUCT: count / 1e9}, PLAIN_PRODUCT, "GFLOP"))
    return counts


def repeat(program: Callable[[], object], times: int) -> None:
    """Run a program several times."""
    for _ in range(times):
        program()


def make_encoder(folder: Path, sentences: Sequence[str], layers: int) -> None:
    """Save a RoBERTa of roberta-large's width with random weights."""
    from transformers import RobertaConfig, RobertaModel

    from tests.helpers.tiny_text_encoder import make_text_encoder

    make_text_encoder(folder, sentences, width=1024)
    config = RobertaConfig.from_pretrained(folder)
    config.num_hidden_layers, config.num_attention_heads, config.intermediate_size = layers, 16, 4096
    RobertaModel(config).save_pretrained(folder)


class Edits:
    """Edits of `few` captions of a step, three ways to get their token features, and the cache of all captions."""

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
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(options.text_encoder)

    def of(self, caption: Caption, editor: CaptionEditor) -> list[str]:
        """The edits of one caption in the first epoch."""
        return editor.edits(caption, self.counts[editor.kind], self.options.seed, 0, caption.id, editor.kind)

    def describe(self) -> str:
        """Number of edits, and of tokens encoded naively and by us."""
        edits = [edit for editor in self.editors for caption in self.few for edit in self.of(caption, editor)]
        naive, count = self.naive_tokens()["input_ids"], self.encoder.count_rows
        distinct = list(dict.fromkeys(edits))
        return (
            f"{len(edits)} edits of {count(edits) / len(edits):.1f} tokens on average, {len(distinct)} distinct; "
            f"naive: {len(naive)} sentences, {naive.numel()} tokens with padding; ours: "
            f"{count(distinct)} tokens"
        )

    def naive_tokens(self) -> Any:
        """All edits, padded to the longest."""
        sentences = []
        for editor in self.editors:
            for caption in self.few:
                edits = self.of(caption, editor)
                sentences += edits + [PLACEHOLDER] * (self.counts[editor.kind] - len(edits))
        return self.tokenizer(sentences, padding=True, truncation=True, max_length=60, return_tensors="pt")

    def programs(self) -> dict[str, Callable[[], object]]:
        """The three ways, and what is left of two of them with data workers."""
        from transformers import RobertaModel

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
        """Steps with and without the edits of all captions; online edits only with workers, else the times add up."""
        batch = random_batch("full", captions, [self.encoder.count_rows([caption.text]) for caption in captions])
        sources: dict[str, NegativeSource | None] = {"step without edits": None, "step with cached edits": self.cached}
        if workers:
            sources["step with online edits"] = self.online
        return {name: fed_step(batch, source, self.options.amp, workers) for name, source in sources.items()}

    def prepared(self, source: NegativeSource) -> Callable[[], object]:
        """The part of a source that is left to the training process."""
        edits = source.prepare(self.few, 0)
        edits = edits.pin_memory() if DEVICE.type == "cuda" else edits
        return lambda: source.queries(edits, DEVICE)


if __name__ == "__main__":
    run_command(main)
