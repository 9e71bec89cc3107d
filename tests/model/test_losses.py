"""The losses against loops over videos and captions, and which negatives are drawn."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from method.data.edits import EditedQueries
from method.model.branch_spec import BranchSpec
from method.model.losses import (
    BatchScores,
    EditScores,
    LossSettings,
    best_own_frames,
    cosine_nce_loss,
    edit_cross_entropy,
    nce_loss,
    total,
    triplet_loss,
)
from method.model.scoring import similarity
from method.training.batch_losses import training_losses
from tests.helpers import reference_model
from tests.helpers.small_models import SMALL, lively_model, random_rows, random_streams, whole_batch

LABELS = {
    "several captions each": [0, 0, 1, 1, 1, 2, 3, 3],
    "one caption each": [0, 1, 2, 3],
    "two videos": [0, 1, 1, 1],
    "unordered": [2, 0, 1, 0, 2, 1],
}
LABELLED = pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)


def settings(pool: int = 1, margin: float = 0.2) -> LossSettings:
    return LossSettings(margin=margin, hard_pool_size=pool)


def scores(labels: list[int], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(len(labels), max(labels) + 1, generator=generator)


def batch(scores_XQB: torch.Tensor, labels: list[int], hard: bool = False) -> BatchScores:
    names = tuple(str(number) for number in range(len(scores_XQB)))
    return BatchScores(names, scores_XQB, scores_XQB, torch.tensor(labels), hard=hard)


def triplet(cosine: torch.Tensor, labels: list[int], options: LossSettings, hard: bool) -> torch.Tensor:
    return triplet_loss(batch(cosine[None], labels, hard), options)["0"]


def nce(raw: torch.Tensor, labels: list[int]) -> torch.Tensor:
    return nce_loss(batch(raw[None], labels), settings())["0"]


@LABELLED
@pytest.mark.parametrize("margin", [0.0, 0.2, 3.0])
def test_hardest_triplet_equals_a_loop(labels: list[int], margin: float) -> None:
    cosine, reference = (scores(labels).requires_grad_() for _ in range(2))
    loss = triplet(cosine, labels, settings(margin=margin), hard=True)
    expected = reference_model.hardest_triplet(reference, labels, margin)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, cosine), torch.autograd.grad(expected, reference))


def chosen_negatives(labels: list[int], pool: int, hard: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Which negatives one draw takes, read off the gradient: by captions (Q, B) and by videos (Q, B)."""
    captions, videos = len(labels), max(labels) + 1
    assert captions != videos
    cosine = scores(labels).requires_grad_()
    triplet(cosine, labels, settings(pool, margin=9.0), hard).backward()
    assert cosine.grad is not None
    by_caption, by_video = torch.zeros(captions, videos), torch.zeros(captions, videos)
    for q in range(captions):
        for v in range(videos):
            value = cosine.grad[q, v].item()
            if v == labels[q]:
                assert value < 0
                continue
            for a in (0, 1):
                for b in (0, 1):
                    if abs(value - a / captions - b / videos) < 1e-6:
                        by_caption[q, v], by_video[q, v] = a, b
    assert by_caption.sum(1).eq(1).all()
    assert by_video.sum(0).eq(1).all()
    return by_caption, by_video


def test_random_negatives_are_drawn_evenly_and_never_the_own() -> None:
    labels, draws = [0, 0, 1, 2, 2, 2, 3], 600
    torch.manual_seed(0)
    taken = [chosen_negatives(labels, 20, hard=False) for _ in range(draws)]
    by_caption = torch.stack([pair[0] for pair in taken]).mean(0)
    by_video = torch.stack([pair[1] for pair in taken]).mean(0)
    for q, label in enumerate(labels):
        for v in range(4):
            others = sum(other != v for other in labels)
            text, video = (0.0, 0.0) if v == label else (1 / 3, 1 / others)
            assert by_caption[q, v].item() == pytest.approx(text, abs=0.0 if v == label else 0.08)
            assert by_video[q, v].item() == pytest.approx(video, abs=0.0 if v == label else 0.08)


def test_hard_negatives_come_from_the_highest() -> None:
    labels, pool = [0, 0, 1, 2, 2, 2, 3], 2
    torch.manual_seed(0)
    taken = [chosen_negatives(labels, pool, hard=True) for _ in range(300)]
    by_caption = torch.stack([pair[0] for pair in taken]).mean(0)
    cosine = scores(labels)
    cosine[torch.arange(7), torch.tensor(labels)] = -torch.inf
    for q in range(7):
        highest = cosine[q].topk(pool).indices
        assert by_caption[q, highest].sum().item() == pytest.approx(1.0)
        assert by_caption[q, highest].min() > 0.35
    for by_video in (pair[1] for pair in taken):
        assert torch.equal(by_video.argmax(0), cosine.argmax(0))


@pytest.mark.parametrize("hard", [False, True])
def test_a_batch_of_one_video_has_no_triplets(hard: bool) -> None:
    cosine = scores([0, 0, 0]).requires_grad_()
    loss = triplet(cosine, [0, 0, 0], settings(20), hard)
    loss.backward()
    assert loss.item() == 0
    assert cosine.grad is not None
    assert not cosine.grad.any()


def test_a_pool_larger_than_the_batch() -> None:
    torch.manual_seed(0)
    cosine = scores(LABELS["several captions each"])
    loss = triplet(cosine, LABELS["several captions each"], settings(1000), hard=True)
    assert torch.isfinite(loss)


@LABELLED
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_nce_equals_a_loop(labels: list[int], scale: float) -> None:
    raw = scale * scores(labels)
    torch.testing.assert_close(nce(raw, labels), reference_model.nce(raw, labels))


def test_nce_of_large_scores_and_of_one_video() -> None:
    raw = torch.tensor([[3000.0, -3000.0], [-3000.0, 3000.0]])
    assert nce(raw, [0, 1]).item() == 0
    assert nce(raw, [1, 0]).item() == 12000
    assert nce(torch.rand(4, 1), [0, 0, 0, 0]).item() == pytest.approx(0, abs=1e-6)


@LABELLED
@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
def test_cosine_nce_equals_a_loop(labels: list[int], temperature: float) -> None:
    cosine, reference = (scores(labels).requires_grad_() for _ in range(2))
    loss = cosine_nce_loss(batch(cosine[None], labels), LossSettings(nce_temperature=temperature))["0"]
    expected = reference_model.nce(reference.double() / temperature, labels).float()
    torch.testing.assert_close(loss, expected)
    gradients = torch.autograd.grad(loss, cosine), torch.autograd.grad(expected, reference)
    torch.testing.assert_close(*gradients, atol=1e-5 / temperature, rtol=1e-4)


@pytest.mark.usefixtures("lowest_for_random")
@pytest.mark.parametrize("hard", [False, True])
def test_losses_of_branches_together_are_those_of_each(hard: bool) -> None:
    torch.manual_seed(0)
    scores_XQB = torch.rand(2, 9, 4, requires_grad=True)
    labels = [caption % 4 for caption in range(9)]
    whole = batch(scores_XQB, labels, hard)
    terms = [triplet_loss(whole, settings()), nce_loss(whole, settings())]
    together = torch.stack([terms[0][name] + terms[1][name] for name in whole.branches])
    alone = torch.stack(
        [triplet(scores_QB, labels, settings(), hard) + nce(scores_QB, labels) for scores_QB in scores_XQB]
    )
    torch.testing.assert_close(together, alone)
    gradients = [torch.autograd.grad(losses.sum(), scores_XQB)[0] for losses in (together, alone)]
    torch.testing.assert_close(*gradients)


# Edited captions


def mean(sum_and_count: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return sum_and_count[0] / sum_and_count[1]


class EditedCase:
    """4 videos, 6 captions with 3, 0, 1, 2, 0 and 1 edits."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.labels = [0, 0, 1, 2, 3, 3]
        self.keys = random_rows([5, 1, 7, 3], 8, seed=2)
        self.queries = torch.randn(6, 8, generator=generator)
        self.edited = torch.randn(7, 8, generator=generator)
        self.owner = torch.tensor([0, 0, 0, 2, 3, 3, 5])

    def loss(self, temperature: torch.Tensor, smoothing: float) -> torch.Tensor:
        found = similarity(self.keys, self.queries)
        best = best_own_frames(self.keys, found, torch.tensor(self.labels))
        return mean(edit_cross_entropy(EditScores(best, self.queries, self.edited, self.owner, temperature), smoothing))

    def naive(self, temperature: torch.Tensor, smoothing: float) -> torch.Tensor:
        keys, mask = reference_model.pad(reference_model.split_values(self.keys))
        edited = [self.edited[self.owner == caption] for caption in range(6)]
        return reference_model.negative_queries(keys, mask, self.queries, edited, self.labels, temperature, smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("temperature", [0.0, 1 / 0.07, 200.0, -5.0])
def test_edited_captions_equal_cross_entropy_one_by_one(temperature: float, smoothing: float) -> None:
    case = EditedCase()
    gradients = []
    for loss in (case.loss, case.naive):
        learned = torch.tensor(temperature, requires_grad=True)
        case.queries.grad = None
        case.queries.requires_grad_()
        value = loss(learned, smoothing)
        value.backward()
        gradients.append((value.detach(), learned.grad, case.queries.grad))
    for ours, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-4)


def test_label_smoothing_is_that_of_torch() -> None:
    """One caption, whose cosines with its best frame are known."""
    best, query = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])
    edited = torch.tensor([[0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]])
    scores = EditScores(best, query, edited, torch.tensor([0, 0, 0]), torch.tensor(3.0))
    loss = mean(edit_cross_entropy(scores, 0.3))
    logits = 3 * torch.tensor([[0.6, 0.8, 0.0, -1.0]])
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.tensor([0]), label_smoothing=0.3))


def test_captions_without_edits_are_left_out() -> None:
    case = EditedCase()
    case.queries.requires_grad_()
    case.loss(torch.tensor(14.0), 0.2).backward()
    assert case.queries.grad is not None
    assert case.queries.grad.abs().sum(1).gt(0).tolist() == [True, False, True, True, False, True]


def test_best_own_frames() -> None:
    case = EditedCase()
    found = similarity(case.keys, case.queries)
    best = best_own_frames(case.keys, found, torch.tensor(case.labels))
    for query, video, frame in zip(case.queries, case.labels, best, strict=True):
        frames = reference_model.split_values(case.keys)[video]
        assert torch.equal(frame, frames[F.cosine_similarity(frames, query[None]).argmax()])


# All terms together


def batch_losses(
    labels: list[int],
    edits: dict[str, EditedQueries] | None = None,
    options: LossSettings | None = None,
    **changes: Any,
) -> Any:
    model = lively_model(**changes)
    streams = random_streams(model.architecture, [4, 1, 6, 2][: max(labels) + 1], [2, 3, 1, 5][: max(labels) + 1])
    tokens = random_rows([3, 1, 4, 2, 5, 1, 2, 3][: len(labels)], model.architecture.query_width)
    sharded = whole_batch(streams, tokens, torch.tensor(labels), edits or {})
    terms = training_losses(model, sharded, options or settings(), True, edits or {})
    return model, streams, tokens, terms


def test_terms_are_those_of_each_branch_and_weighted() -> None:
    labels = LABELS["several captions each"]
    edits = {"object": EditedQueries(random_rows([2, 4], 8, seed=5), torch.tensor([1, 6]))}
    model, streams, tokens, terms = batch_losses(labels, edits)
    assert list(terms) == ["action/triplet", "action/nce", "object/triplet", "object/nce", "object/negative_queries"]
    keys, queries = model.encode_videos(streams), model.encode_queries(tokens)
    for name in ("action", "object"):
        cosine, raw = reference_model.scores(
            *reference_model.pad(reference_model.split_values(keys[name])), queries[name]
        )
        torch.testing.assert_close(terms[f"{name}/triplet"], reference_model.hardest_triplet(cosine, labels, 0.2))
        torch.testing.assert_close(terms[f"{name}/nce"], 0.02 * reference_model.nce(raw, labels), atol=1e-5, rtol=1e-4)
    edited = model.branch("object").encode_queries(edits["object"].queries)
    own = [edited[edits["object"].owner_E == caption] for caption in range(len(labels))]
    padded, mask = reference_model.pad(reference_model.split_values(keys["object"]))
    expected = reference_model.negative_queries(
        padded, mask, queries["object"], own, labels, model.temperatures["object"], ls=0.2
    )
    torch.testing.assert_close(terms["object/negative_queries"], 0.005 * expected)
    torch.testing.assert_close(total(terms), sum(terms.values()))


@pytest.mark.parametrize("labels", [[0], [0, 0, 0], [0, 1], [1, 0, 0, 2]], ids=str)
def test_small_batches_have_finite_losses_and_gradients(labels: list[int]) -> None:
    model, _, _, terms = batch_losses(labels)
    total(terms).backward()
    assert all(torch.isfinite(value) for value in terms.values())
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters() if weight.grad is not None)


def test_one_branch_off() -> None:
    _, _, _, terms = batch_losses([0, 1, 1], fusion="none", object_width=None, temperatures=())
    assert list(terms) == ["action/triplet", "action/nce"]


# The fused score


THREE = {
    "branches": {**SMALL.branches, "audio": BranchSpec("audio_feat", 5, weight=1.5)},
    "temperatures": ("action", "object"),
}
FEWER = {"fusion": "none", "object_width": None, "temperatures": ("action",)}


@pytest.mark.parametrize("fused", ["beside", "instead"])
@pytest.mark.parametrize(
    ("changes", "weights"),
    [({}, {"action": 0.3, "object": 0.7}), (FEWER, {"action": 1.0}),
     (THREE, {"action": 0.12, "object": 0.28, "audio": 0.6})],
    ids=["two branches", "one branch", "three branches"],
)  # fmt: skip
def test_losses_of_the_fused_score(fused: str, changes: dict[str, Any], weights: dict[str, float]) -> None:
    labels = LABELS["several captions each"]
    names = {"triplet": 1.0, "nce": 0.02, "cosine_nce": 0.3}
    options = LossSettings(hard_pool_size=1, weights=names, fused=fused, fused_weight=0.5, fusion_weight=0.3)
    model, streams, tokens, terms = batch_losses(labels, options=options, **changes)
    _, _, _, of_branches = batch_losses(labels, options=replace(options, fused="off"), **changes)
    keys, queries = model.encode_videos(streams), model.encode_queries(tokens)
    pairs = {
        name: reference_model.scores(*reference_model.pad(reference_model.split_values(keys[name])), queries[name])
        for name in weights
    }
    cosine, raw = (torch.stack([weights[n] * pairs[n][kind] for n in weights]).sum(0) for kind in (0, 1))
    expected = {
        "fused/triplet": 0.5 * reference_model.hardest_triplet(cosine, labels, 0.2),
        "fused/nce": 0.5 * 0.02 * reference_model.nce(raw, labels),
        "fused/cosine_nce": 0.5 * 0.3 * reference_model.nce(cosine / 0.07, labels),
    }
    if fused == "beside":
        expected = {**of_branches, **expected}
    assert list(terms) == list(expected)
    torch.testing.assert_close(terms, expected, atol=1e-5, rtol=1e-4)
    total(terms).backward()
    assert all(weight.grad is not None for name, weight in model.named_parameters() if "temperatures" not in name)


def test_edits_are_compared_in_each_branch_whatever_is_fused() -> None:
    edits = {"object": EditedQueries(random_rows([2, 4], 8, seed=5), torch.tensor([1, 2]))}
    options = LossSettings(fused="instead")
    _, _, _, terms = batch_losses([0, 1, 1], edits, options)
    _, _, _, before = batch_losses([0, 1, 1], edits)
    assert list(terms) == ["fused/triplet", "fused/nce", "object/negative_queries"]
    assert torch.equal(terms["object/negative_queries"], before["object/negative_queries"])
