"""A dataset of synthetic features in the published layout, written in a second, for benchmarks/learning.py."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import torch

from benchmarks.synthetic.language import vocabulary
from benchmarks.synthetic.world import Settings, action_stream, object_stream, plan_videos, word_vector
from method.runtime.files import write_text
from method.text.encoder import TextEncoder
from utils.demo.language import sentence
from utils.demo.text_encoder import save_text_encoder


def write_dataset(root: Path, settings: Settings) -> None:
    """Write the features, captions and moments of dataset demo below `root`, and the small text encoder.

    No vocabularies of edited captions.
    """
    splits = plan_videos(settings)
    videos = [video for own in splits.values() for video in own]
    features, text = (root / "dataset" / "demo_i3d" / name for name in ("FeatureData", "TextData"))
    features.mkdir(parents=True)
    text.mkdir(parents=True)
    with h5py.File(features / "demo_clip_i3d_numpy.hdf5", "w", locking=False) as file:
        for video in videos:
            file[f"{video.id}/i3d_feat"] = action_stream(video, settings)
            file[f"{video.id}/clip_feat"] = object_stream(video, settings)
    for split, own in splits.items():
        captions = [(moment.caption_id, sentence(word.text for word in moment.words)) for video in own
                    for moment in video.moments]  # fmt: skip
        write_text(text / f"demo{split}.caption.txt", "".join(f"{name} {caption}\n" for name, caption in captions))
    rows = [
        {"cap_id": moment.caption_id, "start": moment.start, "end": moment.end, "duration": video.duration}
        for video in splits["val"]
        for moment in video.moments
    ]
    write_text(text / "demoval.moments.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    _write_tokens(root / "checkpoints" / "roberta-large", text / "roberta_demo_query_feat.hdf5", settings)


def _write_tokens(encoder: Path, path: Path, settings: Settings) -> None:
    vectors = {word.text: word_vector(word, settings.q_feat_size, settings.seed) for word in vocabulary()}
    save_text_encoder(encoder, vectors, settings.seed)
    moments = [moment for own in plan_videos(settings).values() for video in own for moment in video.moments]
    loaded = TextEncoder(encoder, settings.q_feat_size, max_tokens=30, device=torch.device("cpu"))
    encoded = loaded.encode([sentence(word.text for word in moment.words) for moment in moments])
    with h5py.File(path, "w", locking=False) as file:
        for moment, rows_wD in zip(moments, encoded.values.split(encoded.layout.lengths), strict=True):
            file[moment.caption_id] = rows_wD.numpy()
