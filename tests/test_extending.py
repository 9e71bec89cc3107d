"""docs/extending.md from top to bottom: its code, YAML and commands, in one process on the dataset that it makes."""

import importlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from method.config import options as config
from method.data.ragged import Ragged
from method.model.losses import LOSSES
from method.model.retrieval import HEADS
from method.runtime.files import read_json
from method.training.checkpoint import load_model
from tests.helpers.paths import REPOSITORY
from tests.helpers.small_dataset import history, own_log_handlers
from tests.helpers.small_models import SMALL, random_rows
from tests.test_docs import commands, fences

PAGE = REPOSITORY / "docs" / "extending.md"
SHORT = ["--device", "-1", "--num_workers", "0"]


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which somebody followed the page; what it registered is there until the tests are done."""
    root = tmp_path_factory.mktemp("extending")
    shutil.copytree(config.CONFIGS, root / "configs")
    losses, heads = dict(LOSSES), dict(HEADS)
    with pytest.MonkeyPatch.context() as patch, own_log_handlers():
        patch.chdir(root)
        patch.setattr(config, "CONFIGS", root / "configs")
        patch.setattr("method.evaluation.report.figures.figures_for_tensorboard", lambda evaluation: {})
        bash = [fence.code for fence in fences(PAGE) if fence.language == "bash"]
        words = list(commands(PAGE))
        assert sum(code.count("python ") for code in bash) == len(words)
        for fence in fences(PAGE):
            if fence.language == "python":
                exec(compile(fence.code, PAGE.name, "exec"), {})
            elif fence.language == "yaml":
                with (root / "configs" / "mine.yaml").open("a") as file:
                    file.write(fence.code)
            elif fence.language == "bash":
                for _ in fence.code.splitlines():
                    follow(words.pop(0))
        yield root
    for table, before in ((LOSSES, losses), (HEADS, heads)):
        table.clear()
        table.update(before)  # type: ignore[arg-type]


def follow(words: list[str]) -> None:
    """Run a command of the page."""
    _, program, *arguments = words
    module = importlib.import_module(program.removesuffix(".py").replace("/", "."))
    module.main([*arguments, *SHORT])


def results(root: Path, name: str) -> Path:
    return root / "results" / "mine" / "a3prvr" / name


def test_a_third_stream_is_some_lines_of_yaml(followed: Path) -> None:
    assert set(history(results(followed, "first"))[0]["metrics"]) == {"action", "object", "fused"}
    trained, evaluated = (read_json(results(followed, n) / "metrics.json") for n in ("audio", "audio, evaluated"))
    assert {"action", "object", "audio", "fused"} < set(trained)
    assert trained["audio"] == evaluated["audio"]
    assert "audio" in (results(followed, "audio, evaluated") / "report" / "index.html").read_text("utf-8")
    model = load_model(results(followed, "audio") / "model.ckpt", SMALL).model
    assert model.architecture.fusions == {"action": "object", "audio": "object"}
    assert read_json(results(followed, "audio") / "opt.json")["branches"]["audio"]["weight"] == 0.2


def test_a_loss_term_is_one_function_and_one_line(followed: Path) -> None:
    terms = history(results(followed, "hardest"))[0]["losses"]
    assert set(terms) == {
        f"{branch}/{name}" for branch in ("action", "object", "audio") for name in ("triplet", "hardest")
    }
    assert all(value > 0 for value in terms.values())


def test_a_head_is_scored_alike_in_training_evaluation_and_search(
    followed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = results(followed, "votes") / "model.ckpt"
    flags = ["--eval_ckpt", str(checkpoint), "--save_scores", "--description", "votes, evaluated"]
    follow(["python", "method/evaluate.py", *flags])
    capsys.readouterr()
    follow(["python", "method/search.py", "--eval_ckpt", str(checkpoint), "--query_id", "test0#enc#0", "--json"])
    hits = json.loads(capsys.readouterr().out)["results"]
    model = load_model(checkpoint, SMALL).model
    assert model.architecture.head == "votes"
    with np.load(results(followed, "votes, evaluated") / "scores.npz") as scores:
        row = list(scores["query_ids"]).index("test0#enc#0")
        videos = list(scores["video_ids"])
        for hit in hits:
            for name in ("action", "object", "audio", "fused"):
                expected = scores[name][row, videos.index(hit["video_id"])]
                assert hit["scores"][name] == pytest.approx(expected, abs=1e-5)


def test_keys_of_the_recipes_are_those_of_a_slow_loop(followed: Path) -> None:
    branch = load_model(results(followed, "votes") / "model.ckpt", SMALL).model.branch("action")
    frames = random_rows([9, 3, 4], 16)
    with torch.no_grad():
        keys, queries = branch.encode_videos(frames), random_rows([5], 16, seed=1).values
        found = branch.score(keys, queries).cosine_QB
        for b, own in enumerate(frames.values.split([9, 3, 4])):
            clips = branch.key(torch.stack([part.mean(0) for part in own.split(4)]))
            cosine = torch.cosine_similarity(clips[:, None], queries, dim=-1)
            torch.testing.assert_close(found[:, b], ((10 * cosine).softmax(0) * cosine).sum(0))


def test_a_local_block_sees_what_is_near_alone(followed: Path) -> None:
    model = load_model(results(followed, "local") / "model.ckpt", SMALL).model
    features = random_rows([40], 10).values

    def change(moved: int) -> float:
        other = features.clone()
        other[moved] = -other[moved]
        with torch.no_grad():
            first, second = (model.branch("action").frames(Ragged.of([own])).values for own in (features, other))
        return float((first - second)[0].norm())

    assert change(9) == 0 < change(8)
    assert load_model(results(followed, "other") / "model.ckpt", SMALL).model.architecture.query_width == 24
