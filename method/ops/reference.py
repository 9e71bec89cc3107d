"""Samples of the deformable fusion, made for a GPU: products are cheap there, sums of scattered rows not.

Letters: K rows that are read, n samples, G groups, D width of a row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sampled(rows_KD: Tensor, places_nG2: Tensor, shares_nG2: Tensor) -> Tensor:
    """Samples of rows, each group of channels read from two rows, (n, D).

    Args:
        rows_KD: rows that are read.
        places_nG2: rows that each group of each sample reads.
        shares_nG2: the share of each.
    """
    groups = places_nG2.shape[1]
    table = rows_KD.unflatten(1, (groups, -1)).flatten(0, 1)  # (K*G, D/G)
    bags = places_nG2 * groups + torch.arange(groups, device=table.device)[:, None]
    shares = shares_nG2.to(table.dtype).reshape(-1, 2)
    made = F.embedding_bag(bags.reshape(-1, 2), table, per_sample_weights=shares, mode="sum")
    return made.view(len(bags), -1)
