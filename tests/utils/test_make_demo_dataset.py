"""The demo: the same bytes from the same seed, continued after interruptions, and streams that see half each."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import h5py
import numpy as np
import numpy.typing as npt
import pytest
import torch

from method.config.options import read_options
from method.data.captions import read_captions
from method.data.features import ACTION_KEY, OBJECT_KEY, FeatureFile
from method.runtime.errors import InputError
from method.runtime.files import read_json
from method.video.clip import ClipImageEncoder
from method.video.encode import open_encoders
from method.video.recipes import find_recipe
from utils import make_demo_dataset
from utils.demo.language import COLOURS, SHAPES, VERBS, Event, describe, tag_sentences, vocabulary
from utils.demo.scenes import RATE, SIDE, Moment, Video, draw, plan_video, write_video
from utils.make_demo_dataset import STAMP, Settings, best_sumr, main, make_demo, plan_videos

SMALL = Settings(videos=5, val=3, seed=0)
FEATURES = "dataset/demo_i3d/FeatureData/demo_clip_i3d_numpy.hdf5"
TEXT = "dataset/demo_i3d/TextData"


def content_of(folder: Path) -> dict[str, bytes]:
    """Every file but the feature file, which has the times of the videos."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    left_out = {folder / FEATURES, folder / STAMP}
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path not in left_out}


def features_of(folder: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with h5py.File(folder / FEATURES) as file:
        file.visititems(lambda name, own: found.update({name: own[()].tobytes()} if hasattr(own, "dtype") else {}))
    return found


@pytest.fixture(scope="module", autouse=True)
def few_examples() -> Iterator[None]:
    """An image encoder fitted to fewer frames, in a fraction of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_demo_dataset, "_EXAMPLES", 12)
        yield


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small demo, which no test changes."""
    out = tmp_path_factory.mktemp("demo")
    assert make_demo(out, SMALL)
    return out


def test_same_settings_give_the_same_bytes(demo: Path, tmp_path: Path) -> None:
    make_demo(tmp_path / "again", SMALL)
    assert content_of(tmp_path / "again") == content_of(demo)
    assert features_of(tmp_path / "again") == features_of(demo)
    other = plan_videos(replace(SMALL, seed=1, videos=9))
    assert other["train"][0] != plan_videos(SMALL)["train"][0]
    assert plan_videos(replace(SMALL, videos=9))["train"][:5] == plan_videos(SMALL)["train"]


def test_the_dataset_is_that_of_the_configuration(demo: Path) -> None:
    options = read_options(["--dataset_name", "demo", "--root_path", str(demo)])
    ids = {video.id for own in plan_videos(SMALL).values() for video in own}
    videos, texts = FeatureFile(options.video_feat_path), FeatureFile(options.text_feat_path)
    rows = videos.check((f"{own}/{ACTION_KEY}" for own in ids), options.visual_feat_dim)
    assert rows.keys() == {f"{own}/{ACTION_KEY}" for own in ids}
    videos.check((f"{own}/{OBJECT_KEY}" for own in ids), options.visual_flow_feat_dim)
    captions = [*read_captions(options.caption_train_txt), *read_captions(options.caption_test_txt)]
    planned = [moment.sentence for own in plan_videos(SMALL).values() for video in own for moment in video.moments]
    assert [caption.text for caption in captions] == planned
    counts = texts.check((caption.id for caption in captions), options.q_feat_size)
    # Every word is one token; the full stop, start and end.
    assert counts == {caption.id: len(caption.text.split()) + 3 for caption in captions}
    for kind, parts in (("action", {"VBZ", "VBG"}), ("object", {"NN"})):
        tags = read_json(options[f"id_{kind}_dict"])
        assert tags.keys() == {caption.id for caption in captions}
        assert {tag for own in tags.values() for tag in own.values()} == parts
        assert all(len(own) == 1 for own in tags.values())
    moments = [json.loads(line) for line in options.moments.read_text().splitlines()]
    assert all(moment["end"] <= moment["duration"] for moment in moments)
    assert len(moments) == sum(len(video.moments) for video in plan_videos(SMALL)["test"])


def test_videos_show_what_was_drawn(demo: Path) -> None:
    video = plan_videos(SMALL)["test"][0]
    with av.open(str(demo / "videos" / f"{video.id}.mp4")) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height, stream.average_rate) == (
            "h264",
            SIDE,
            SIDE,
            RATE,
        )
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(stream)])
    drawn = draw(video, SMALL.seed)
    assert frames.shape == drawn.shape
    assert np.abs(frames.astype(int) - drawn).mean() < 4  # grey levels: colours have half the resolution


def test_moments_are_disjoint_and_differ() -> None:
    for number in range(50):
        video = plan_video(f"demo_{number:05d}", 0)
        times = [time for moment in video.moments for time in (moment.start, moment.end)]
        assert times == sorted(times)
        assert 0 < times[0] < times[-1] < video.duration
        assert 2 <= len(video.moments) <= 5
        for values in zip(*((moment.event.verb, moment.event.shape) for moment in video.moments), strict=True):
            assert len(set(values)) == len(values)


def test_sentences_are_english_and_their_words_are_tagged() -> None:
    rng = np.random.default_rng(0)
    texts = {describe(Event("red", "moon", "swing"), rng) for _ in range(100)}
    assert texts == {f"{a} red moon {swings}." for a in ("A", "The") for swings in ("swings", "is swinging")}
    known = {word.text for word in vocabulary()}
    for colour, shape, verb in zip(COLOURS * 3, SHAPES * 2, VERBS, strict=False):
        text = describe(Event(colour, shape, verb), rng)
        assert set(text.lower().rstrip(".").split()) <= known
        (words,) = tag_sentences([text])
        assert Counter(word.part for word in words if word.part != "X") == {"VERB": 1, "NOUN": 1}


@pytest.fixture(scope="module")
def mean_rows(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[Event, npt.NDArray[np.float32]]]:
    """Stream -> event -> the mean row, of length 1, of a moment of eight seconds."""
    encoders = open_encoders(
        find_recipe("small"),
        clip_folder=demo / make_demo_dataset.CLIP,
        i3d_weights=demo / make_demo_dataset.I3D,
        device=torch.device("cpu"),
    )
    rows: dict[str, dict[Event, npt.NDArray[np.float32]]] = {ACTION_KEY: {}, OBJECT_KEY: {}}
    path = tmp_path_factory.mktemp("events") / "one.mp4"
    for colour, shape in (("red", "square"), ("red", "ring"), ("green", "square"), ("blue", "star")):
        for verb in ("rest", "swing", "rise", "blink"):
            event = Event(colour, shape, verb)
            with path.open("wb") as file:
                write_video(file, draw(Video("one", 10.0, [Moment(1.0, 9.0, event, "")]), 0))
            for key, rows_ND in encoders.encode(path).items():
                mean_D = rows_ND[2:-2].mean(0)
                rows[key][event] = mean_D / np.linalg.norm(mean_D)
    return rows


def test_the_action_stream_tells_motions_and_not_colours(
    mean_rows: dict[str, dict[Event, npt.NDArray[np.float32]]],
) -> None:
    rows = mean_rows[ACTION_KEY]
    for event, own in rows.items():
        nearest = max((other for other in rows if other != event), key=lambda other: float(rows[other] @ own))
        assert nearest.verb == event.verb
        recoloured = replace(event, colour="green" if event.colour == "red" else "red")
        if recoloured in rows:
            assert own @ rows[recoloured] > 0.99


def test_the_object_stream_tells_colours_and_not_motions(
    mean_rows: dict[str, dict[Event, npt.NDArray[np.float32]]],
) -> None:
    rows = {event: own for event, own in mean_rows[OBJECT_KEY].items() if event.verb != "blink"}
    for event, own in rows.items():
        nearest = max((other for other in rows if other != event), key=lambda other: float(rows[other] @ own))
        assert nearest.colour == event.colour


def test_the_object_stream_does_not_tell_where_things_are(demo: Path) -> None:
    encoder = ClipImageEncoder(demo / make_demo_dataset.CLIP, torch.device("cpu"))
    event = Event("red", "star", "rest")
    frame = draw(Video("one", 10.0, [Moment(1.0, 9.0, event, "")]), 0)[40]
    elsewhere = np.roll(frame, (8, -8), (0, 1))  # by whole patches
    here, there = encoder.encode(torch.stack([encoder.prepare(image) for image in (frame, elsewhere)])).numpy()
    assert not np.array_equal(frame, elsewhere)
    np.testing.assert_allclose(here, there, atol=1e-3)


def test_what_is_there_is_kept_and_what_is_damaged_made_again(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    shutil.copytree(demo, out)
    (out / "results").mkdir()
    (out / TEXT / "of a cache.cache").write_text("of no harm")
    main(["--out", str(out), "--videos", "5", "--val", "3"])
    assert "already up to date" in capsys.readouterr().out
    videos = sorted((out / "videos").glob("*.mp4"))
    kept = videos[1].stat().st_mtime_ns
    videos[0].write_bytes(b"?")
    (out / TEXT / "demotrain.caption.txt").unlink()
    assert make_demo(out, SMALL)
    assert videos[1].stat().st_mtime_ns == kept
    (out / TEXT / "of a cache.cache").unlink(missing_ok=True)
    assert content_of(out) == content_of(demo)
    assert features_of(out) == features_of(demo)
    monkeypatch.setattr(make_demo_dataset, "VERSION", make_demo_dataset.VERSION + 1)
    assert make_demo(out, replace(SMALL, videos=2))
    assert len(list((out / "videos").iterdir())) == 5
    assert (out / "results").exists()


@pytest.mark.parametrize("step", ["_table", "add_captions"])
def test_an_interrupted_demo_is_continued(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(make_demo_dataset, step, interrupt)
        with pytest.raises(KeyboardInterrupt):
            make_demo(tmp_path, SMALL)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "videos").iterdir()}
    assert len(times) == 8
    assert make_demo(tmp_path, SMALL)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "videos").iterdir()} == times
    assert content_of(tmp_path) == content_of(demo)


@pytest.mark.parametrize("place", ["dataset/demo_i3d", "checkpoints/roberta-large", "videos"])
def test_folders_of_others_are_refused_and_kept(tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / "precious").write_text("data")
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / place}: no demo (")):
        make_demo(tmp_path, SMALL)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path.name != ".demo.lock"] == ["precious"]


def test_the_best_sumr_is_that_of_drawing_lots_among_equal_videos() -> None:
    def showing(*verbs: str) -> Video:
        return Video("x", 9.0, [Moment(0, 1, Event("red", "ring", verb), "") for verb in verbs])

    assert best_sumr([showing("rest"), showing("swing", "sink")]) == 400
    # The sentences about resting rings are right for two videos.
    assert best_sumr([showing("rest"), showing("rest", "sink")]) == pytest.approx((2 * 350 + 400) / 3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--videos", "0"], "--videos 0: expected at least 1"), (["--seed", "-1"], "--seed -1: expected at least 0")],
)
def test_settings_that_cannot_be(tmp_path: Path, flags: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        main(["--out", str(tmp_path), *flags])
