"""Weights and batches of the golden cases, rebuilt from their names as golden/README.md says."""

import json
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from method.data.preprocessing import normalize_rows
from method.data.ragged import Ragged
from method.model.architecture import Architecture
from method.model.branch_spec import two_branches
from method.model.published import from_published, published_architecture
from method.model.retrieval import RetrievalModel
from tests.helpers.paths import GOLDEN

CASES = json.loads((GOLDEN / "cases.json").read_text())
SHAPES = json.loads((GOLDEN / "state_dict_shapes.json").read_text())
LABELS = torch.tensor([0, 0, 1, 1, 1, 2, 3, 3, 3, 3, 4, 5, 5])
ACTION_LENGTHS = [20, 7, 13, 20, 3, 11]
OBJECT_LENGTHS = [14, 9, 14, 5, 2, 8]
QUERY_LENGTHS = [7, 4, 10, 3, 6, 9, 5, 2, 8, 10, 4, 6, 7]


def draw(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return generator.standard_normal(shape).astype(np.float32)


def golden_architecture(case: str) -> Architecture:
    c = CASES[case]
    architecture = Architecture(
        branches=two_branches(("i3d_feat", c["i3d"]), ("clip_feat", c["clip"]), c["dirn"], c["scale"]),
        query_width=c["q"],
        hidden_size=c["hidden"],
        heads=c["n_heads"],
        max_frames=c["max_ctx_l"],
        max_words=c["max_desc_l"],
        input_dropout=0.1,
        dropout=0.1,
        initializer_range=0.02,
        fusion="deformable" if c["deformable"] else "attention",
        fusion_extent="padded",
        fusion_positions=False,
        fusion_heads=c["heads"] if c["deformable"] else 4,
        offset_groups=c["groups"],
        offset_count=c["offsets"],
        offset_kernel=3,
        temperatures=(),
    )
    return published_architecture(architecture)


def golden_weight(name: str, shape: tuple[int, ...]) -> Tensor:
    norms = ("LayerNorm.weight", ".norm1.weight", ".norm2.weight", "pos_encoder_Q.1.weight", "pos_encoder_KV.1.weight")
    if name in ("temp", "temp2"):
        return torch.tensor(1 / 0.07)
    if name.endswith("scales_make_attn_diff"):
        return torch.tensor(70.0)
    values = torch.from_numpy(draw(name, shape))
    if ".to_offsets." in name:
        return 0.5 * values
    return 1 + 0.1 * values if name.endswith(norms) else 0.08 * values


def published_weights(case: str) -> dict[str, Tensor]:
    return {name: golden_weight(name, tuple(shape)) for name, shape in SHAPES[case].items()}


@dataclass(frozen=True)
class GoldenCase:
    model: RetrievalModel
    streams: dict[str, Ragged]
    tokens: Ragged
    expected: dict[str, npt.NDArray[np.float32]]


def golden_case(case: str) -> GoldenCase:
    architecture = golden_architecture(case)
    model = RetrievalModel(architecture).eval()
    model.load_state_dict(from_published(published_weights(case), architecture, case))
    c = CASES[case]
    inputs = {
        "action": ("i3d", (6, 20, c["i3d"]), ACTION_LENGTHS),
        "object": ("clip", (6, 14, c["clip"]), OBJECT_LENGTHS),
        "query": ("query", (13, 10, c["q"]), QUERY_LENGTHS),
    }
    rows = {name: golden_rows(f"{case}/{drawn}", shape, lengths) for name, (drawn, shape, lengths) in inputs.items()}
    with np.load(GOLDEN / f"{case}.npz") as file:
        expected = dict(file)
    return GoldenCase(model, {"action": rows["action"], "object": rows["object"]}, rows["query"], expected)


def golden_rows(name: str, shape: tuple[int, ...], lengths: list[int]) -> Ragged:
    values = normalize_rows(torch.from_numpy(draw(name, shape)))
    return Ragged.of([sequence[:length] for sequence, length in zip(values, lengths, strict=True)])
