from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import rc_context, rcParams
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from method.data.ragged import MANY_ROWS, Ragged
from method.evaluation.bounds import best_branch, duplicates
from method.evaluation.metrics import RECALL_AT, RECALLS, retrieval_metrics
from method.evaluation.report import drawing
from method.evaluation.report import statistics as data
from method.evaluation.report.breakdown import breakdowns
from method.evaluation.report.cost import costs, multiply_adds
from method.evaluation.report.failures import timelines, worst_captions
from method.evaluation.report.figures import figures_for_tensorboard
from method.evaluation.report.input import ReportInput
from method.evaluation.report.write import WINNERS, WORST, write_report
from method.model.retrieval import HEADS, Branch
from method.runtime.files import read_json
from tests.evaluation.reported import evaluation_of, report_input, some_captions, some_moments
from tests.helpers.small_dataset import SmallDataset, run_evaluate, run_train
from tests.helpers.small_models import random_rows

ONE_BRANCH: dict[str, Any] = {"fusion": "none", "object_width": None, "temperatures": ("action",)}
HOSTILE = (
    "a person <script>alert('x')</script> opens the door",
    'the "cat" & the <b>dog</b> \' $x^2$ {{ 7 * 7 }} {% raw %}',
    "一只猫 🎬 ‏שלום‏ </style><img src=http://example.org/x.png onerror=alert(1)>",
)


@pytest.fixture(autouse=True)
def _one_run_a_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("method.evaluation.report.cost._LEAST_SECONDS", 0.0)


def random_ranks(count: int, videos: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(1, videos + 1, count)


# --- the numbers behind the figures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "videos"), [(1, 1), (7, 3), (200, 150)])
def test_the_recall_curve_counts_ranks_up_to_k(count: int, videos: int) -> None:
    ranks = random_ranks(count, videos)
    naive = [100 * sum(rank <= k for rank in ranks) / count for k in range(1, videos + 1)]
    np.testing.assert_allclose(data.recall_curve(ranks, videos), naive)


@pytest.mark.parametrize("videos", [1, 2, 5, 6, 10, 100, 101, 199, 200, 2179, 4430, 100_000])
def test_rank_bins_partition_the_ranks(videos: int) -> None:
    bins = data.rank_bins(videos)
    assert bins[0][0] == 1
    assert bins[-1][1] == videos
    assert all(after[0] == before[1] + 1 for before, after in pairwise(bins))
    assert all(first <= last for first, last in bins)
    ranks = random_ranks(300, videos)
    naive = [sum(first <= rank <= last for rank in ranks) for first, last in bins]
    assert data.rank_histogram(ranks, bins) == naive
    assert sum(naive) == 300


@pytest.mark.parametrize("branches", [("action", "object"), ("action", "object", "audio"), ("a", "b", "c", "d")])
def test_fusion_outcomes_and_agreement_equal_a_loop(branches: tuple[str, ...]) -> None:
    ranks = {name: random_ranks(400, 12, seed) for seed, name in enumerate((*branches, "fused"))}
    fused = ranks["fused"]
    naive = []
    for *own, f in zip(*ranks.values(), strict=True):
        if f < min(own):
            naive.append("better than every branch")
        elif f == min(own):
            naive.append("as good as the best branch")
        else:
            naive.append("worse than every branch" if f > max(own) else "in between")
    assert set(naive) == set(data.OUTCOMES)
    assert [data.OUTCOMES[index] for index in data.fusion_outcomes(ranks)] == naive
    found = {row.found_by: row for row in data.agreement(ranks, 4)}
    alone = [f for first, *others, f in zip(*ranks.values(), strict=True) if first <= 4 < min(others)]
    row = found[f"{branches[0]} only"]
    assert (row.captions, row.found_fused) == (len(alone), sum(f <= 4 for f in alone))
    assert found["every branch"].captions == sum(max(own) <= 4 for *own, _ in zip(*ranks.values(), strict=True))
    assert sum(row.captions for row in found.values()) == 400
    assert sum(row.found_fused for row in found.values()) == sum(fused <= 4)


def test_sumr_of_a_group_is_the_metric_of_its_captions() -> None:
    ranks = {"action": random_ranks(300, 200), "fused": random_ranks(300, 200, 1)}
    group_Q = np.random.default_rng(2).integers(-1, 3, 300)
    groups = data.sumr_by_group(ranks, group_Q, ["a", "b", "c", "empty"])
    for index, group in enumerate(groups[:3]):
        own = {name: values[group_Q == index] for name, values in ranks.items()}
        assert group.captions == len(own["fused"])
        for name, values in own.items():
            assert group.sumr[name] == pytest.approx(retrieval_metrics(values)["sumr"])
            sums = [100 * sum(rank <= k for k in RECALL_AT) for rank in values]
            assert group.error[name] == pytest.approx(1.96 * np.std(sums) / len(sums) ** 0.5)
    assert (groups[3].captions, groups[3].sumr) == (0, {})


@pytest.mark.parametrize("values", [[4], [4, 4, 4], [1, 2], list(range(100)), [1] * 90 + [7, 8, 9], [3, 9, 9, 9, 9]])
def test_even_bins_partition_the_values(values: list[int]) -> None:
    bins, labels = data.even_bins(np.array(values), 5)
    assert len(labels) == len(bins) <= 5
    for value in values:
        assert sum(first <= value <= last for first, last in bins) == 1
    indices = data.bin_indices(np.array(values), bins)
    assert all(bins[index][0] <= value <= bins[index][1] for index, value in zip(indices, values, strict=True))
    assert set(indices.tolist()) == set(range(len(bins)))  # none is empty


def test_breakdowns_count_the_captions_of_each_bin(tmp_path: Path) -> None:
    captions = some_captions(40, ("one", "one two three", "one two three four"))
    moments = some_moments(captions, every=2)
    given = report_input(captions, moments, tmp_path)
    frames = given.split.frames["action"]
    made = {b.name: b for b in breakdowns(given.evaluation.ranks, captions, frames, "the stream", moments)}
    counted = {name: {group.label: group.captions for group in b.groups} for name, b in made.items()}
    per_video = [sum(other.video_id == caption.video_id for other in captions) for caption in captions]
    expected = {f"{count}": per_video.count(count) for count in (1, 2, 3, 4, 5)}
    assert counted["captions_of_video"] == {label: count for label, count in expected.items() if count}
    ratios = [moment.ratio for moment in moments.values()]
    bounds = ((0, 0.2), (0.2, 0.4), (0.4, 1))
    assert counted["moment_ratio"] == {f"{low}–{high}": sum(low < r <= high for r in ratios) for low, high in bounds}
    assert len(counted["moment_ratio_ten"]) == 10
    assert sum(counted["moment_ratio_ten"].values()) == len(ratios)
    assert sum(counted["caption_length"].values()) == sum(counted["video_length"].values()) == len(captions)
    # Every video's duration is known by one of its captions; without the first video's, frames are what is left.
    assert made["video_length"].unit == "seconds"
    fewer = {name: moment for name, moment in moments.items() if not name.startswith("V0#")}
    unknown = breakdowns(given.evaluation.ranks, captions, frames, "the stream", fewer)
    assert {b.unit for b in unknown if b.name == "video_length"} == {"frames"}
    without = breakdowns(given.evaluation.ranks, captions, frames, "the stream", {})
    assert [b.name for b in without if not b.groups] == ["moment_ratio", "moment_ratio_ten"]


def test_worst_captions_and_their_winners_equal_the_full_scores(tmp_path: Path) -> None:
    evaluation = evaluation_of(tmp_path, 60)
    assert evaluation.scores is not None
    fused, ranks = evaluation.scores["fused"], evaluation.ranks["fused"]
    failures = worst_captions(evaluation, 5, 3)
    assert [failure.rank for failure in failures] == sorted(ranks.tolist(), reverse=True)[:5]
    for failure in failures:
        scores = fused[failure.index]
        assert evaluation.queries.captions[failure.index] is failure.caption
        right = scores[evaluation.video_ids.index(failure.caption.video_id)]
        assert failure.right.score == pytest.approx(right, abs=1e-6)
        best = sorted(range(60), key=lambda video: -scores[video])[:3]
        assert [winner.video_id for winner in failure.winners] == [evaluation.video_ids[video] for video in best]
        for winner in failure.winners:
            assert [caption.video_id for caption in winner.captions] == [winner.video_id] * len(winner.captions)


def test_a_tie_outranks_the_right_video(tmp_path: Path) -> None:
    evaluation = evaluation_of(tmp_path, 2)
    zeros = {name: replace(rows, values=rows.values * 0) for name, rows in evaluation.corpus.frames.items()}
    tied = replace(
        evaluation,
        corpus=replace(evaluation.corpus, frames=zeros),
        ranks={name: np.full(3, 2) for name in evaluation.ranks},
    )
    failures = worst_captions(tied, 9, 3)
    assert [[winner.video_id for winner in failure.winners] for failure in failures] == [["V1"], ["V0"], ["V0"]]


def test_a_winner_with_the_same_caption_is_marked(tmp_path: Path) -> None:
    failures = worst_captions(report_input(some_captions(20), {}, tmp_path).evaluation, 5, 3)
    assert all(failure.same_text for failure in failures)


def test_timelines_have_each_branch_at_its_own_rate(tmp_path: Path) -> None:
    captions = some_captions(6)
    moments = some_moments(captions)
    evaluation = report_input(captions, moments, tmp_path).evaluation
    own = timelines(evaluation, 4, captions[4].video_id, moments, {captions[4].video_id: 12.0})
    other = timelines(evaluation, 4, "V0", moments, {})
    assert (own.true, own.duration) == (moments[captions[4].id], 12.0)
    assert (other.true, other.duration) == (None, None)
    for video in (own, other):
        keys = evaluation.corpus.video(evaluation.video_ids.index(video.video_id))
        for name, rows in keys.items():
            expected = (rows @ evaluation.queries.vectors[name][4]).numpy()
            np.testing.assert_allclose(video.scores[name], expected, atol=1e-6)
        assert len(video.scores["fused"]) == max(map(len, keys.values()))
        assert video.predicted.score == pytest.approx(video.scores["fused"].max())


# --- cost -------------------------------------------------------------------------------------------------------------


def test_multiply_adds_of_a_model_without_fusion_equal_the_formula(tmp_path: Path) -> None:
    model = report_input(some_captions(3), {}, tmp_path, **ONE_BRANCH).model
    frames, width, d = 7, 10, 16
    attention = 2 * MANY_ROWS**2 * d  # two products, of padded rows
    # input, query and key and value and output projections, frame key
    expected = frames * (width * d + 4 * d * d + d * d) + attention
    streams = {"action": random_rows([frames], width)}
    assert multiply_adds(lambda: model.encode_videos(streams)) == expected
    tokens, tokens_width = 5, 8
    query = random_rows([tokens], tokens_width)
    expected = tokens * (tokens_width * d + 4 * d * d) + attention  # sums, as in pooling, are not counted
    assert multiply_adds(lambda: model.encode_queries(query)) == expected


def test_costs_are_those_of_the_model_and_the_corpus(tmp_path: Path) -> None:
    given = report_input(some_captions(4), {}, tmp_path)
    found = costs(given.model, given.evaluation, given.split)
    by_name = {(cost.what, cost.unit): cost for cost in found}
    assert by_name["parameters", ""].value == sum(weight.numel() for weight in given.model.parameters())
    frames = sum(sum(keys.lengths) for keys in given.evaluation.corpus.frames.values())
    assert by_name["index, per video", "bytes"].value == frames / 4 * 16 * 4
    counts = [cost.what for cost in found if cost.unit == "ms per query"]
    assert counts == [
        "time to score a query, 1 at once",
        "time to score a query, 7 at once",
    ]  # there are 7 captions, not 100
    assert all(cost.value > 0 for cost in found)
    long, median = (by_name[f"encode a {kind} video", "M multiply-adds"] for kind in ("long", "median"))
    assert long.value > median.value
    assert long.how.startswith("24 frames per branch")


class EverySecondFrame(Branch):
    """A head with fewer keys than frames."""

    def encode_videos(self, frames: Ragged) -> Ragged:
        keys = super().encode_videos(frames)
        return Ragged.of([rows[::2] for rows in keys.values.split(list(keys.layout.lengths))])


def test_costs_of_another_head_count_frames_and_keys_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HEADS, "halves", EverySecondFrame)
    given = report_input(some_captions(4), {}, tmp_path, head="halves", **ONE_BRANCH)
    by_name = {cost.what: cost for cost in costs(given.model, given.evaluation, given.split)}
    frames = round(float(np.median(list(given.split.frames["action"].values()))))
    streams = {"action": random_rows([frames], 10)}
    encoding, scoring = by_name["encode a median video"], by_name["score a query against a median video"]
    assert encoding.how.startswith(f"{frames} action frames")
    assert encoding.value * 1e6 == multiply_adds(lambda: given.model.encode_videos(streams))
    assert scoring.how.startswith(f"{-(-frames // 2)} action embeddings")
    assert scoring.value * 1e6 == -(-frames // 2) * 16


# --- the page ---------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags with their attributes, ids, and the text outside of style sheets."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "source", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, Path, ReportInput]:
    """A report with every part, of captions that contain markup."""
    folder = tmp_path_factory.mktemp("run")
    captions = some_captions(130, HOSTILE)
    given = report_input(captions, some_moments(captions, every=2), folder / "<model>.ckpt")
    path = write_report(folder, given)
    assert path == folder / "report" / "index.html"
    return Page(path), path.parent, given


def test_the_page_is_self_contained(reported: tuple[Page, Path, ReportInput]) -> None:
    page, folder, _ = reported
    assert page.open == []
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "b", "form"})
    for picture in page.all("img"):
        assert str(picture["src"]).startswith("data:image/png;base64,iVBOR")
        assert len(str(picture["alt"])) > 40
    assert all(str(source["srcset"]).startswith("data:image/png;base64,") for source in page.all("source"))
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    (policy,) = (str(meta["content"]) for meta in page.all("meta") if meta.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    for link in page.all("a"):
        target = str(link["href"])
        assert target[1:] in ids if target.startswith("#") else (folder / target).is_file()


def test_captions_and_paths_are_escaped(reported: tuple[Page, Path, ReportInput]) -> None:
    page, _, given = reported
    shown = {failure.caption.text for failure in worst_captions(given.evaluation, WORST, WINNERS)}
    assert shown
    for text in shown:
        assert re.sub(r"\s+", " ", text) in page.text
    assert "<model>.ckpt, epoch 7" in page.text.replace("  ", " ").replace(" ,", ",")


def test_the_page_says_how_sure_the_recalls_are_and_what_limits_them(reported: tuple[Page, Path, ReportInput]) -> None:
    page, _, given = reported
    evaluation = given.evaluation
    assert evaluation.intervals is not None
    for own in evaluation.intervals.values():
        for low, high in own.values():
            assert f"{low:.1f}–{high:.1f}" in page.text
    assert "10,000 resamples, seed 0" in page.text
    assert "training seeds come on top" in page.text
    found, oracle = duplicates(evaluation.queries.captions), best_branch(evaluation.ranks)
    assert oracle is not None
    for label, values in (("better branch", oracle), ("ceiling", found.ceiling)):
        row = " ".join([label, *(f"{values[key]:.1f}" for key in RECALLS), "– – –"])
        assert row in page.text.replace("  ", " ")
    assert f"{found.captions} captions ( 3 texts)" in page.text.replace("(3", "( 3")


def test_a_report_with_moments_has_every_part(reported: tuple[Page, Path, ReportInput]) -> None:
    page, folder, given = reported
    headings = [
        *("Results", "Recall over K", "Ranks", "Where fusion helps and hurts", "By caption length"),
        *("By number of captions of the video", "By video length", "three bins that papers report", "ten equal bins"),
        *("Worst captions", "Timelines", "Cost"),
    ]
    indices = [page.text.rindex(heading) for heading in headings]
    assert indices == sorted(indices)
    assert "an addition of this program, not in the paper" in page.text
    assert "No ground-truth moments" not in page.text
    pictures = {path.stem for path in folder.glob("*.png")}
    assert pictures == {
        *("recall_curve", "rank_histogram", "fusion", "timelines_1", "timelines_2", "timelines_3", "timelines_4"),
        *(f"sumr_by_{name}" for name in ("caption_length", "captions_of_video", "video_length")),
        *("sumr_by_moment_ratio", "sumr_by_moment_ratio_ten"),
    }
    assert len(page.all("img")) == len(pictures)
    for what in (
        "parameters",
        "encode a median video",
        "encode a query",
        "index, per video",
        "score a query, 100 at once",
    ):
        assert what in page.text
    assert f"score a query, {len(given.evaluation.caption_ids)} at once" in page.text


def test_tables_equal_the_page(reported: tuple[Page, Path, ReportInput]) -> None:
    _, folder, given = reported
    evaluation = given.evaluation

    def rows(name: str) -> list[dict[str, str]]:
        with (folder / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    captions = rows("captions.csv")
    assert [row["caption"] for row in captions] == [caption.text for caption in evaluation.queries.captions]
    for name, ranks in evaluation.ranks.items():
        assert [int(row[f"rank_{name}"]) for row in captions] == ranks.tolist()
    assert [row["caption_id"] for row in captions if row["iou"]] == list(given.moments)
    curve = rows("recall_curve.csv")
    assert [int(row["k"]) for row in curve] == list(range(1, 131))
    assert float(curve[9]["fused"]) == pytest.approx(evaluation.metrics["fused"]["r10"])
    assert sum(int(row["action"]) for row in rows("rank_histogram.csv")) == len(captions)
    assert sum(int(row["captions"]) for row in rows("moment_ratio_ten.csv")) == len(given.moments)
    worst = rows("worst_captions.csv")
    assert len(worst) == WORST * WINNERS
    assert int(worst[0]["rank_fused"]) == evaluation.ranks["fused"].max()
    timeline = [float(row["cosine"]) for row in rows("timelines_1.csv") if row["score"] == "fused"]
    assert len(timeline) > 2


@pytest.mark.parametrize(
    ("videos", "changes"),
    [(1, {}), (3, {"fusion": "none", "action_width": None, "temperatures": ("object",)})],
)
def test_reports_of_small_corpora_and_single_branches(tmp_path: Path, videos: int, changes: dict[str, Any]) -> None:
    captions = some_captions(videos)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "timelines_9.png").touch()  # of an earlier report
    page = Page(write_report(tmp_path, report_input(captions, {}, tmp_path / "model.ckpt", **changes)))
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    assert not (tmp_path / "report" / "timelines_9.png").exists()
    assert page.text.count("No ground-truth moments") == 3 + (videos > 1)
    assert f"With only {videos} videos R@100 is always 100" in page.text
    assert ("Every caption ranks its video first" in page.text) == (videos == 1)
    if changes:  # one branch has nothing to fuse, so nothing is said about it
        tables = [path.read_text("utf-8") for path in (tmp_path / "report").glob("*.csv")]
        assert not [text for text in (page.text, *tables) if "fus" in text]
    assert ("Where fusion helps and hurts" in page.text) == (not changes)


def test_a_report_of_many_branches(tmp_path: Path) -> None:
    branches = ("<b>", "audio", "c d", "d", "e", "f")
    captions = some_captions(40)
    given = report_input(captions, some_moments(captions), tmp_path / "model.ckpt", branches)
    page = Page(write_report(tmp_path, given))
    assert page.open == []
    for name in branches:
        assert f"{name} only" in page.text
    assert "0.3 × " + branches[0] in page.text
    assert "several branches, not all" in page.text
    assert "rank under the fused score" in str([image["alt"] for image in page.all("img")])
    with (tmp_path / "report" / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for name, ranks in given.evaluation.ranks.items():
        assert [int(row[f"rank_{name}"]) for row in rows] == ranks.tolist()
    timeline = (tmp_path / "report" / "timelines_1.csv").read_text("utf-8")
    assert all(f",{name}," in timeline for name in (*branches, "fused"))


def test_figures_ignore_the_settings_of_matplotlib(tmp_path: Path) -> None:
    evaluation = evaluation_of(tmp_path, 12)
    with rc_context({"axes.facecolor": "red", "font.size": 40}):
        figures = figures_for_tensorboard(evaluation)
        assert rcParams["axes.facecolor"] == "red"
    for figure in figures.values():
        assert figure.axes[0].get_facecolor() == (1.0, 1.0, 1.0, 1.0)
        assert float(figure.axes[0].xaxis.label.get_fontsize()) < 20
    assert list(figures) == ["recall_curve", "rank_histogram", "fusion"]
    assert all(isinstance(figure, Figure) for figure in figures.values())
    with SummaryWriter(str(tmp_path)) as writer:
        for name, figure in figures.items():
            writer.add_figure(name, figure)
    assert list(figures_for_tensorboard(evaluation_of(tmp_path, 12, **ONE_BRANCH))) == [
        "recall_curve",
        "rank_histogram",
    ]


# --- the commands -----------------------------------------------------------------------------------------------------


def test_a_drawing_error_is_a_warning(
    small: SmallDataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("no\nfont")

    monkeypatch.setattr("method.training.tensorboard.Monitor.figures", fail)
    monkeypatch.setattr("method.evaluation.report.write._write_page", fail)
    run = run_train(small.flags("--n_epoch", "1", "--report"))
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"{what} could not be drawn, the metrics are complete (RuntimeError: no font)"
        for what in ("the report", "the figures in tensorboard/")
    ]
    assert (run / "metrics.json").exists()
    assert not (run / "report").exists()


def test_drawing_can_be_interrupted() -> None:
    with pytest.raises(KeyboardInterrupt), drawing("the report"):
        raise KeyboardInterrupt


def test_the_matplotlib_backend_is_ignored_and_kept() -> None:
    """In a process of its own: Matplotlib looks at the variable when it is first imported."""
    code = """if True:
        import os
        from method.evaluation.report import drawing
        with drawing("x"):
            from method.evaluation.report.theme import LIGHT, applied, new_figure
            with applied(LIGHT):
                new_figure().savefig(os.devnull, format="png")
        print(os.environ["MPLBACKEND"])"""
    environment = {**os.environ, "MPLBACKEND": "no such backend"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "no such backend\n", "")


def test_moments_are_reported_if_annotated_and_the_page_if_requested(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = SmallDataset(tmp_path)
    run = run_train(dataset.flags("--n_epoch", "1"))
    assert "moments" not in read_json(run / "metrics.json")

    lines = [f'{{"cap_id": "{caption.id}", "start": 1, "end": 3, "duration": 9}}\n' for caption in dataset.captions()]
    dataset.test_txt.with_name("demoval.moments.jsonl").write_text("".join(lines))
    again = ["--eval_ckpt", str(run / "model.ckpt"), "--root_path", str(tmp_path), "--device", "-1"]
    evaluated = run_evaluate(again)
    metrics = read_json(evaluated / "metrics.json")
    assert metrics["moments"]["captions"] == len(lines)
    assert set(metrics["moments"]) == {"about", "captions", "in_video", "in_corpus"}
    assert not (evaluated / "report").exists()
    assert metrics["fused"] == read_json(run / "metrics.json")["fused"]

    def full_disk(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("method.evaluation.report.theme.write_bytes", full_disk)
    run_evaluate([*again, "--report", "--description", "full"])
    assert "the report could not be drawn" in caplog.text
    assert "No space left on device" in caplog.text
    assert not any("report" in path.name for path in (evaluated.parent / "full").iterdir())
    kept = read_json(evaluated.parent / "full" / "metrics.json")
    assert (kept["fused"], kept["moments"]) == (metrics["fused"], metrics["moments"])
