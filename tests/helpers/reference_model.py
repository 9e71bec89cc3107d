"""The model, its losses and its ranking written straight from the description, slowly, to compare with.

Padded tensors, a loop over whatever can be looped over, the published weight names. Letters as in the package:
B videos, L and M padded lengths of the two streams, Q captions, W tokens, D width, J samples, G groups, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from method.data.ragged import Ragged
from method.model.architecture import Architecture

NEGATIVE = -1e10


class NaiveModel(nn.Module):
    """Computes from published weights; parameters are registered under their published names, dots replaced."""

    def __init__(self, weights: Mapping[str, Tensor], architecture: Architecture) -> None:
        super().__init__()
        self.a = architecture
        self.names = list(weights)
        for name, weight in weights.items():
            self.register_parameter(name.replace(".", "/"), nn.Parameter(weight.clone()))

    def w(self, name: str) -> Tensor:
        return self.get_parameter(name.replace(".", "/"))

    def linear(self, name: str, x: Tensor) -> Tensor:
        bias = f"{name}.bias"
        return F.linear(x, self.w(f"{name}.weight"), self.w(bias) if bias in self.names else None)

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.w(f"{name}.weight"), self.w(f"{name}.bias"))

    def drop(self, x: Tensor, p: float) -> Tensor:
        return F.dropout(x, p, self.training)

    def encode(self, side: str, suffix: str, x: Tensor, mask: Tensor) -> Tensor:
        a = self.a
        x = self.drop(self.norm(f"{side}_input_proj{suffix}.LayerNorm", x), a.input_dropout)
        x = F.relu(self.linear(f"{side}_input_proj{suffix}.net.1", x))
        x = x + self.w(f"{side}_pos_embed{suffix}.position_embeddings.weight")[: x.shape[1]]
        x = self.drop(self.norm(f"{side}_pos_embed{suffix}.LayerNorm", x), a.dropout)
        encoder = f"{side}_encoder{suffix}"
        q, k, v = (
            self.linear(f"{encoder}.self.{part}", x).unflatten(-1, (a.heads, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + (1 - mask.float())[:, None, None, :] * -10000.0
        x2 = (self.drop(logits.softmax(-1), a.dropout) @ v).transpose(1, 2).flatten(2)
        return self.norm(
            f"{encoder}.output.LayerNorm", x + self.drop(self.linear(f"{encoder}.output.dense", x2), a.dropout)
        )

    def encode_queries(self, suffix: str, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.encode("query", suffix, tokens, mask)
        logits = (x @ self.w(f"modular_vector_mapping{suffix}.weight")[0]).masked_fill(~mask, NEGATIVE)
        return (logits.softmax(-1)[..., None] * x).sum(1)

    def feed_forward(self, prefix: str, x: Tensor, attended: Tensor) -> Tensor:
        x = self.norm(f"{prefix}.norm1", x + attended)
        inner = self.drop(F.relu(self.linear(f"{prefix}.ffn.0", x)), 0.05)
        return self.norm(f"{prefix}.norm2", x + self.linear(f"{prefix}.ffn.3", inner))

    def attention_fusion(self, prefix: str, x: Tensor, x_mask: Tensor, y: Tensor, y_mask: Tensor) -> Tensor:
        prefix = f"{prefix}.ca"
        q, k, v = (
            self.linear(f"{prefix}.msa.linears.{i}", z).unflatten(-1, (self.a.fusion_heads, -1)).transpose(1, 2)
            for i, z in ((0, x), (1, y), (2, y))
        )
        mask = x_mask[:, None, :, None] & y_mask[:, None, None, :]
        logits = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~mask, -1e9)
        out = (self.drop(logits.softmax(-1), 0.05) @ v).transpose(1, 2).flatten(2)
        return self.feed_forward(prefix, x, self.linear(f"{prefix}.msa.linears.3", out))

    def mlp(self, name: str, x: Tensor) -> Tensor:
        return self.linear(f"{name}.3", self.drop(F.relu(self.linear(f"{name}.0", x)), 0.05))

    def deformable_fusion(self, prefix: str, x: Tensor, y: Tensor, scale: float) -> Tensor:
        """All L frames of x look into y, both of the padded lengths they come with."""
        a = self.a
        B, L, D = x.shape
        M, G, J, H = y.shape[1], a.offset_groups, a.offset_count, a.fusion_heads
        if a.fusion_positions:
            x = x + self.norm(f"{prefix}.pos_encoder_Q.1", self.w(f"{prefix}.pos_encoder_Q.0.weight")[:L])
            y = y + self.norm(f"{prefix}.pos_encoder_KV.1", self.w(f"{prefix}.pos_encoder_KV.0.weight")[:M])
        q = self.mlp(f"{prefix}.to_q", x)
        grouped = q.transpose(1, 2).reshape(B * G, D // G, L)
        z = F.conv1d(
            grouped,
            self.w(f"{prefix}.to_offsets.0.weight"),
            self.w(f"{prefix}.to_offsets.0.bias"),
            padding=a.offset_kernel // 2,
            groups=D // G,
        )
        offsets = F.conv1d(F.gelu(z), self.w(f"{prefix}.to_offsets.2.weight")).tanh() * scale  # (B*G, J, L)
        position = torch.arange(L, device=x.device) + offsets
        if a.fusion_extent == "padded":
            unit = (2 * position / max(L - 1, 1) - 1).clamp(-1, 1)
            grid = torch.stack([unit, torch.zeros_like(unit)], -1)
            image = y.transpose(1, 2).reshape(B * G, D // G, 1, M)
            sampled = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            temperature = L**-0.5 * self.w(f"{prefix}.scales_make_attn_diff")
        else:
            place = position.clamp(0, L - 1) * ((M - 1) / max(L - 1, 1))
            low = place.floor().clamp(max=M - 1).long()
            high = (low + 1).clamp(max=M - 1)
            source = y.transpose(1, 2).reshape(B * G, D // G, M)
            flat = [
                source.gather(2, i.flatten(1)[:, None].expand(-1, D // G, -1)).unflatten(2, (J, L)) for i in (low, high)
            ]
            sampled = flat[0] + (flat[1] - flat[0]) * (place - low)[:, None]
            temperature = self.w(f"{prefix}.scales_make_attn_diff") * a.max_frames**-0.5
        samples = sampled.reshape(B, D, J, L).permute(0, 3, 2, 1)  # (B, L, J, D)
        k, v = self.mlp(f"{prefix}.to_k", samples), self.mlp(f"{prefix}.to_v", samples)
        qh, kh, vh = (z.unflatten(-1, (H, D // H)) for z in (q, k, v))
        logits = torch.einsum("blhd,bljhd->blhj", qh, kh) * (D // H) ** -0.5 * temperature
        attention = self.drop(logits.softmax(-1), 0.05)
        attended = torch.einsum("blhj,bljhd->blhd", attention, vh).flatten(2)
        return self.feed_forward(prefix, x, attended)

    def encode_videos(self, action: Ragged, object_: Ragged) -> dict[str, tuple[Tensor, Tensor]]:
        """Frame keys (B, L, D) and mask of each branch. With extent 'valid', each video by itself."""
        if self.a.fusion_extent == "valid" and len(action) > 1:
            alone = [self.encode_videos(*pair) for pair in zip(split(action), split(object_), strict=True)]
            return {name: pad([row[name][0][0] for row in alone]) for name in ("action", "object")}
        (x, x_mask), (y, y_mask) = pad(split_values(action)), pad(split_values(object_))
        x, y = self.encode("frame", "", x, x_mask), self.encode("frame", "_action", y, y_mask)
        fused_x, fused_y = x, y
        prefixes = ["cross_branch_fusion_A1", "cross_branch_fusion_B1"]
        if "action" in self.a.fusions:
            scale = self.a.branches["action"].offset_scale
            fused_x = self.fuse(prefixes.pop(0), x, x_mask, y.detach(), y_mask, scale)
        if "object" in self.a.fusions:
            scale = self.a.branches["object"].offset_scale
            fused_y = self.fuse(prefixes.pop(0), y, y_mask, x.detach(), x_mask, scale)
        return {
            "action": (fused_x @ self.w("mapping_linear.0.weight").t(), x_mask),
            "object": (fused_y @ self.w("mapping_linear_phrase_action.0.weight").t(), y_mask),
        }

    def fuse(self, prefix: str, x: Tensor, x_mask: Tensor, y: Tensor, y_mask: Tensor, scale: float) -> Tensor:
        if self.a.fusion == "attention":
            return self.attention_fusion(prefix, x, x_mask, y, y_mask)
        return self.deformable_fusion(prefix, x, y, scale)


def split(rows: Ragged) -> list[Ragged]:
    return [Ragged.of([values]) for values in split_values(rows)]


def split_values(rows: Ragged) -> list[Tensor]:
    return list(rows.values.split(list(rows.layout.lengths)))


def pad(sequences: list[Tensor]) -> tuple[Tensor, Tensor]:
    lengths = [len(sequence) for sequence in sequences]
    padded = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    arange, ends = torch.arange(max(lengths)), torch.tensor(lengths)
    return padded, (arange < ends[:, None]).to(padded.device)


def scores(keys: Tensor, mask: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and raw scores (Q, B), one query and one video at a time."""
    cosine = torch.empty(len(queries), len(keys))
    raw = torch.empty(len(queries), len(keys))
    rows_c, rows_r = [], []
    for query in queries:
        best_c, best_r = [], []
        for frames, valid in zip(keys, mask, strict=True):
            dots = frames[valid] @ query
            best_r.append(dots.max())
            best_c.append((dots / (frames[valid].norm(dim=1) * query.norm())).max())
        rows_c.append(torch.stack(best_c))
        rows_r.append(torch.stack(best_r))
    cosine, raw = torch.stack(rows_c), torch.stack(rows_r)
    return cosine, raw


def hardest_triplet(cosine: Tensor, labels: list[int], margin: float) -> Tensor:
    """Triplet loss in which every negative is the hardest."""
    videos = range(cosine.shape[1])
    to_text, to_video = [], []
    for v in videos:
        own = [q for q, label in enumerate(labels) if label == v]
        others = [q for q, label in enumerate(labels) if label != v]
        to_text.append((margin + cosine[others, v].max() - cosine[own, v].mean()).clamp(min=0))
    for q, v in enumerate(labels):
        negative = max(cosine[q, u] for u in videos if u != v)
        to_video.append((margin + negative - cosine[q, v]).clamp(min=0))
    return torch.stack(to_text).mean() + torch.stack(to_video).mean()


def nce(raw: Tensor, labels: list[int]) -> Tensor:
    to_video = [raw[q].exp().sum().log() - raw[q, v] for q, v in enumerate(labels)]
    to_text = []
    for v in range(raw.shape[1]):
        own = raw[[q for q, label in enumerate(labels) if label == v], v]
        to_text.append(raw[:, v].exp().sum().log() - own.exp().sum().log())
    return torch.stack(to_video).mean() + torch.stack(to_text).mean()


def negative_queries(
    keys: Tensor, mask: Tensor, queries: Tensor, edited: list[Tensor], labels: list[int], temperature: Tensor, ls: float
) -> Tensor:
    """edited: the vectors (E_q, D) of the edits of each caption."""
    losses = []
    for query, own, video in zip(queries, edited, labels, strict=True):
        if len(own):
            frames = keys[video][mask[video]]
            best = frames[F.cosine_similarity(frames, query[None]).argmax()]
            logits = temperature * F.cosine_similarity(torch.cat([query[None], own]), best[None])
            losses.append(F.cross_entropy(logits[None], torch.tensor([0]), label_smoothing=ls))
    return torch.stack(losses).mean()


def rank_of(row: Tensor, right: int) -> int:
    """How many videos score at least as much as the right one."""
    return sum(1 for score in row.tolist() if score >= row[right].item())
