"""Time of a step's edited captions: encoded naively, encoded as training does, and drawn from a cache.

    python benchmarks/text_encoder.py --dataset activitynet --root_path DIR
    python benchmarks/text_encoder.py --dataset activitynet --root_path DIR --layers 24 --share 0.1

DIR holds a dataset with its vocabularies. The encoder has the width of roberta-large, the given depth, random weights.
Naive is what the published program does: every caption gets all its copies, a placeholder sentence where it has no
edit, and all are padded to the longest together. Then a whole training step of the launch without edited captions
and with them from the cache.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from easydict import EasyDict
from transformers import AutoTokenizer, RobertaConfig, RobertaModel

from benchmarks.measure import alternate, as_published, as_trained, compare, machine
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
CPU = torch.device("cpu")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the times of the three ways, and of a step with and without edits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=list(STEPS), default="activitynet")
    parser.add_argument("--root_path", required=True, help="folder of the dataset")
    parser.add_argument("--layers", type=int, default=2, help="of the encoder; roberta-large has 24")
    parser.add_argument("--share", type=float, default=1.0, help="share of a step's captions that is encoded")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    captions, copies = STEPS[given.dataset]
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--dataset_name", given.dataset, "--root_path", given.root_path, "--neg_query_loss", "both"]
        flags += ["--neg_action_num", str(copies), "--neg_object_num", str(copies), "--q_feat_size", "1024"]
        flags += ["--text_encoder", f"{folder}/encoder"]
        options = read_options(flags)
        batch = read_captions(options.caption_train_txt)[:captions]
        make_encoder(options.text_encoder, [caption.text for caption in batch], given.layers)
        few = batch[: max(1, round(given.share * captions))]
        print(f"{machine()}; {given.dataset}, {len(few)} captions, {copies}+{copies} copies, {given.layers} layers")
        print(compare(alternate(encoding_programs(options, batch, few, Path(folder) / "cache"), given.rounds), "naive"))
        cached = open_cache(options, batch, Path(folder) / "cache")
        print(compare(alternate(step_programs(batch, cached), given.rounds), "step without edits"))


def make_encoder(folder: Path, sentences: Sequence[str], layers: int) -> None:
    """Save a RoBERTa of roberta-large's width with random weights."""
    make_text_encoder(folder, sentences, width=1024)
    config = RobertaConfig.from_pretrained(folder)
    config.num_hidden_layers, config.num_attention_heads, config.intermediate_size = layers, 16, 4096
    RobertaModel(config).save_pretrained(folder)


def encoding_programs(
    options: EasyDict, captions: Sequence[Caption], few: Sequence[Caption], cache: Path
) -> dict[str, Callable[[], object]]:
    """The three ways to the token features of the edits of `few` captions; makes the cache of all."""
    vocabularies = read_vocabularies(options, {caption.id for caption in captions})
    editors = [CaptionEditor(captions, vocabulary) for vocabulary in vocabularies]
    counts = {kind: options[f"neg_{kind}_num"] for kind in KINDS}
    encoder = TextEncoder(options.text_encoder, 1024, options.max_desc_l, CPU)
    online = OnlineNegatives(editors, counts, encoder, options.seed)
    pools = Pools(captions, editors, counts, options.seed)
    make_cache(cache, pools, cache_fingerprint(options, captions, vocabularies), encoder)
    cached = open_cache(options, captions, cache)
    model = RobertaModel.from_pretrained(options.text_encoder, add_pooling_layer=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.text_encoder)

    @torch.inference_mode()
    def naive() -> None:
        sentences = []
        for editor in editors:
            for caption in few:
                edits = editor.edits(caption, counts[editor.kind], options.seed, 0, caption.id, editor.kind)
                sentences += edits + [PLACEHOLDER] * (counts[editor.kind] - len(edits))
        model(**tokenizer(sentences, padding=True, truncation=True, max_length=60, return_tensors="pt"))

    return {
        "naive": as_published(naive),
        "online": as_trained(lambda: online.for_batch(few, 0), CPU),
        "cache": lambda: cached.for_batch(few, 0),
    }


def open_cache(options: EasyDict, captions: Sequence[Caption], folder: Path) -> CachedNegatives:
    """The cache that `encoding_programs` made."""
    vocabularies = read_vocabularies(options, {caption.id for caption in captions})
    counts = {kind: options[f"neg_{kind}_num"] for kind in KINDS}
    return CachedNegatives(folder, captions, cache_fingerprint(options, captions, vocabularies), counts, options.seed)


def step_programs(captions: Sequence[Caption], cached: CachedNegatives) -> dict[str, Callable[[], object]]:
    """Steps at the launch's size without edited captions and with those of the cache."""
    batch = random_batch("full", captions)

    def step(source: CachedNegatives | None, branches: tuple[str, ...]) -> Callable[[], object]:
        model = RetrievalModel(replace(LAUNCH, temperatures=branches)).train()
        settings = LoopSettings(100, 10, 20, -1, "off", LOSSES, 0)
        training = Training(model, settings, Schedule(2.5e-4, 0.01, 1000), 0.01, CPU, source)
        return as_trained(lambda: training.step(batch), CPU)

    return {"step without edits": step(None, ()), "step with cached edits": step(cached, ("action", "object"))}


if __name__ == "__main__":
    main()
