"""The published program's numbers: encodings, scores, losses and gradients."""

import numpy as np
import pytest
import torch

from method import ops
from method.data.edits import EditedQueries
from method.data.preprocessing import normalize_rows
from method.data.ragged import Ragged
from method.model.losses import LossSettings, total
from method.model.published_names import published_name
from method.model.scoring import similarity
from method.training.batch_losses import training_losses
from tests.helpers.golden_case import CASES, LABELS, draw, golden_case
from tests.helpers.small_models import whole_batch

PUBLISHED_BRANCH = {"action": "motion", "object": "appearance"}
PUBLISHED_LOSS = {"triplet": "clip_trip_loss", "nce": "clip_nce_loss", "negative_queries": "neg_query_loss"}


def golden_edits(case: str) -> dict[str, EditedQueries]:
    drawn = normalize_rows(torch.from_numpy(draw(f"{case}/negative", (13, 5, 6, CASES[case]["q"]))))

    def edits(copies: range, without: tuple[int, ...], shift: int) -> EditedQueries:
        pairs = [(caption, copy) for caption in range(13) if caption not in without for copy in copies]
        tokens = [drawn[caption, copy, : 4 + (caption + shift) % 3] for caption, copy in pairs]
        return EditedQueries(Ragged.of(tokens), torch.tensor([caption for caption, _ in pairs]))

    return {"action": edits(range(2), (3, 9), 0), "object": edits(range(2, 5), (5,), 1)}


@pytest.fixture(params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ops.VARIABLE, request.param)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("case", CASES)
def test_encodings_and_scores(case: str) -> None:
    golden = golden_case(case)
    with torch.no_grad():
        frames = golden.model.encode_frames(golden.streams)
        queries = golden.model.encode_queries(golden.tokens)
    for branch, published in PUBLISHED_BRANCH.items():
        rows = frames[branch]
        expected = golden.expected[f"{published}_fused"]
        valid = np.concatenate([expected[i, :length] for i, length in enumerate(rows.layout.lengths)])
        np.testing.assert_allclose(rows.values, valid, atol=1e-5)
        np.testing.assert_allclose(queries[branch], golden.expected[f"{published}_query"], atol=1e-5)
        with torch.no_grad():
            scores = similarity(golden.model.branch(branch).encode_videos(rows), queries[branch])
        np.testing.assert_allclose(scores.cosine_QB, golden.expected[f"{published}_cosine"], atol=1e-5)
        np.testing.assert_allclose(scores.cosine_QB, golden.expected[f"{published}_eval_scores"], atol=1e-5)
        np.testing.assert_allclose(scores.raw_QB, golden.expected[f"{published}_raw"], atol=1e-5)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients(case: str) -> None:
    golden, c = golden_case(case), CASES[case]
    weights = {"triplet": 1.0, "nce": 0.02, "negative_queries": c["w"]}
    settings = LossSettings(margin=c["margin"], hard_pool_size=1, label_smoothing=c["ls"], weights=weights)
    edits = golden_edits(case)
    sharded = whole_batch(golden.streams, golden.tokens, LABELS, edits)
    terms = training_losses(golden.model, sharded, settings, hard=True, edits=edits)
    for branch, suffix in (("action", ""), ("object", "_action")):
        for term, published in PUBLISHED_LOSS.items():
            expected = golden.expected[f"loss/{published}{suffix}"]
            assert terms[f"{branch}/{term}"].item() == pytest.approx(float(expected), rel=1e-5)
    loss = total(terms)
    assert loss.item() == pytest.approx(float(golden.expected["loss/loss_overall"]), rel=1e-6)

    loss.backward()
    compared = set()
    for ours, weight in golden.model.named_parameters():
        name = published_name(ours, golden.model.architecture)
        assert weight.grad is not None, name
        norm, summed = (float(golden.expected[f"{what}/{name}"]) for what in ("grad_norm", "grad_sum"))
        # Keys' biases cancel in a softmax: their gradients are rounding errors of either program.
        scale = max(norm, 1e-4)
        assert weight.grad.double().norm().item() == pytest.approx(norm, abs=1e-4 * scale), name
        assert weight.grad.double().sum().item() == pytest.approx(summed, abs=1e-4 * scale), name
        compared.add(f"grad_norm/{name}")
    assert compared == {name for name in golden.expected if name.startswith("grad_norm/")}
