import fcntl
import itertools
import pickle
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from method.data.captions import Caption
from method.data.edits import Kind
from method.negatives import blocks, build_cache
from method.negatives import cache as negative_cache
from method.negatives.build_cache import Pools, make_cache
from method.negatives.cache import fingerprint, read_manifest, write_manifest
from method.negatives.cached import CachedNegatives
from method.negatives.vocabulary import Vocabulary
from method.runtime.errors import InputError
from method.text.encoder import TextEncoder
from method.text.encoder_files import encoder_digest
from tests.helpers.poor_disk import refuse_all
from tests.helpers.reference_model import split_values
from tests.helpers.small_negatives import edits_of, make_captions, make_editors, read_vocabularies_in
from tests.helpers.tiny_text_encoder import WIDTH, make_text_encoder

ROOT = Path(__file__).resolve().parents[2]
CAPTIONS = make_captions(150)  # three blocks, the last one not full
SIZES: dict[Kind, int] = {"action": 4, "object": 6}
COUNTS: dict[Kind, int] = {"action": 2, "object": 3}


class Made:
    """A cache of CAPTIONS, and what it was made with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.encoder_folder = make_text_encoder(folder / "encoder", [caption.text for caption in CAPTIONS])
        self.encoder = TextEncoder(self.encoder_folder, WIDTH, 12, torch.device("cpu"))
        self.editors = make_editors(folder, CAPTIONS)
        self.pools = Pools(CAPTIONS, self.editors, SIZES, 666)
        self.parts = self.fingerprint()

    def fingerprint(self, **flags: int) -> dict[str, Any]:
        vocabularies = read_vocabularies_in(self.folder, CAPTIONS)
        chosen = {"max_desc_l": 12, "q_feat_size": WIDTH, "seed": 666, **flags}
        return fingerprint(CAPTIONS, vocabularies, encoder_digest(self.encoder_folder), **chosen)

    def make(self, name: str) -> Path:
        make_cache(self.folder / name, self.pools, self.parts, self.encoder)
        return self.folder / name

    def open(self, folder: Path, **changes: Any) -> CachedNegatives:
        given = {"captions": CAPTIONS, "expected": self.parts, "counts": COUNTS, "seed": 666, **changes}
        return CachedNegatives(folder, **given)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums in another order would differ in their last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    made = Made(tmp_path_factory.mktemp("negatives"))
    made.make("cache")
    return made


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Path:
    shutil.copytree(made.folder / "cache", tmp_path / "copy")
    return tmp_path / "copy"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_pools_hold_what_single_sentences_give(made: Made) -> None:
    manifest = read_manifest(made.folder / "cache", made.parts)
    assert manifest.complete
    for number, held in enumerate(negative_cache.blocks_of(CAPTIONS)):
        block = negative_cache.open_block(made.folder / "cache", manifest, number, held)
        rows, end = block.map_rows(), 0
        edits = [(caption, *edit) for caption in held for edit in made.pools.edits(caption)]
        assert len(edits) == len(block.records)
        for (caption, _, word, sentence), record in zip(edits, block.records, strict=True):
            start, end = end, end + int(record["rows"])
            assert (caption, word) == (record["caption"], record["word"])
            single = made.encoder.encode([sentence]).values.half().numpy()
            np.testing.assert_allclose(rows[start:end], single, atol=1e-3)


def test_pools_are_as_large_as_asked_and_never_hold_the_caption(made: Made) -> None:
    for number, caption in enumerate(CAPTIONS):
        edits = list(made.pools.edits(number))
        sizes = Counter(kind for kind, _, _ in edits)
        expected = {} if number % 7 == 0 else SIZES
        assert dict(sizes) == expected
        assert caption.text not in [sentence for *_, sentence in edits]


def test_training_draws_even_distinct_and_reproducible_edits(made: Made) -> None:
    cached = made.open(made.folder / "cache")
    batch = CAPTIONS[20:60]
    drawn = set()
    for epoch in range(8):
        of_epoch = edits_of(made.open(made.folder / "cache"), batch, epoch)
        for kind, count in COUNTS.items():
            edits = edits_of(cached, batch, epoch)[kind]
            again = of_epoch[kind]
            assert edits is not None
            assert again is not None
            assert torch.equal(edits.queries.values, again.queries.values)
            owners = Counter(edits.owner_E.tolist())
            assert owners == {i: count for i, caption in enumerate(batch) if "Nobody" not in caption.text}
        drawn.add(tuple(cached._draw("object", CAPTIONS[20], epoch)))
        assert len(set(cached._draw("object", CAPTIONS[9], epoch))) == 3
        # Two things to replace: 3 edits are 2 of one and 1 of the other.
        words = Counter(cached._words[cached._draw("object", CAPTIONS[9], epoch)].tolist())
        assert sorted(words.values()) == [1, 2]
    assert len(drawn) > 3


def test_the_rows_of_a_batch_are_those_of_its_edits(made: Made) -> None:
    """From all three blocks, there and back."""
    cached = made.open(made.folder / "cache")
    batch = [*CAPTIONS[60:70], CAPTIONS[149], *CAPTIONS[1:5], CAPTIONS[149]]
    prepared = cached.prepare(batch, 3)
    rows = iter(split_values(prepared.rows))
    for kind in COUNTS:
        for caption in batch:
            for edit in cached._draw(kind, caption, 3):
                block = cached._blocks[cached._block[edit]]
                start = cached._starts[edit]
                expected = block.map_rows()[start : start + cached._rows[edit]]
                assert np.array_equal(next(rows).numpy(), expected)
    assert not list(rows)


def test_a_caption_draws_the_same_in_any_batch(made: Made) -> None:
    cached = made.open(made.folder / "cache")
    alone = edits_of(cached, [CAPTIONS[30]], 2)["action"]
    together = edits_of(cached, CAPTIONS[29:33], 2)["action"]
    assert alone is not None
    assert together is not None
    rows = together.queries.values[together.owner_E[together.queries.layout.owner_N] == 1]
    assert torch.equal(rows, alone.queries.values)


def test_a_batch_without_any_edit_is_none(made: Made) -> None:
    cached = made.open(made.folder / "cache")
    assert edits_of(cached, [CAPTIONS[0], CAPTIONS[7]], 0) == {"action": None, "object": None}
    assert cached.count_editable() == {"action": 128, "object": 128}


def test_other_processes_read_it_too(made: Made) -> None:
    cached = made.open(made.folder / "cache")
    here = edits_of(cached, CAPTIONS, 1)["object"]
    there = pickle.loads(pickle.dumps(cached))
    assert len(pickle.dumps(cached)) < 100_000
    again = edits_of(there, CAPTIONS, 1)["object"]
    assert here is not None
    assert again is not None
    assert torch.equal(here.queries.values, again.queries.values)


@pytest.mark.parametrize(
    ("part", "value", "named"),
    [
        ("captions", "0", "captions "),
        ("action vocabulary", "0", "action vocabulary "),
        ("object vocabulary", "0", "object vocabulary "),
        ("text encoder", "0", "text encoder "),
        ("--max_desc_l", 30, "--max_desc_l 12, expected 30"),
        ("--q_feat_size", 64, f"--q_feat_size {WIDTH}, expected 64"),
        ("--seed", 520, "--seed 666, expected 520"),
    ],
)
def test_a_cache_made_from_something_else_is_refused_by_name(made: Made, part: str, value: Any, named: str) -> None:
    other = {**made.parts, part: value}
    before = content(made.folder / "cache")
    for use in (
        lambda: made.open(made.folder / "cache", expected=other),
        lambda: make_cache(made.folder / "cache", made.pools, other, made.encoder),
    ):
        with pytest.raises(InputError, match="made from something else") as caught:
            use()
        assert named in str(caught.value)
        assert str(caught.value).count("expected") == 1
    assert content(made.folder / "cache") == before


def test_the_fingerprint_names_what_changed(made: Made) -> None:
    action, things = read_vocabularies_in(made.folder, CAPTIONS)
    first = CAPTIONS[0]

    def changed(captions: list[Caption] = CAPTIONS, action: Vocabulary = action, **flags: int) -> set[str]:
        parts = fingerprint(captions, [action, things], encoder_digest(made.encoder_folder), **flags)
        return {part for part, value in parts.items() if made.parts.get(part) != value}

    assert changed(max_desc_l=12, q_feat_size=WIDTH, seed=666) == set()
    assert changed(seed=7) == {"--seed"}
    assert changed([replace(first, text=first.text + "!"), *CAPTIONS[1:]]) == {"captions"}
    assert "captions" in changed([replace(first, id="video0#enc#9"), *CAPTIONS[1:]])
    assert "captions" in changed(CAPTIONS[1:])
    words = {"VBZ": action.words_of["VBZ"][::-1]}
    assert changed(action=replace(action, words_of=words)) == {"action vocabulary"}
    tags = {**action.tags_of, CAPTIONS[1].id: {"man": "VBZ"}}
    assert changed(action=replace(action, tags_of=tags)) == {"action vocabulary"}


def test_pools_must_be_large_enough(made: Made) -> None:
    with pytest.raises(InputError, match=r"pools of 4 action edits, --neg_action_num 5 .*cache_negatives"):
        made.open(made.folder / "cache", counts={"action": 5})


def test_without_the_encoder_the_cache_is_enough(made: Made) -> None:
    parts = {part: value for part, value in made.parts.items() if part != "text encoder"}
    assert edits_of(made.open(made.folder / "cache", expected=parts), CAPTIONS, 0)["action"] is not None


def test_no_cache_and_an_incomplete_one_are_refused(made: Made, copy: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no cache of encoded edits there"):
        made.open(tmp_path / "nowhere")
    write_manifest(copy, replace(read_manifest(copy, {}), complete=False))
    with pytest.raises(InputError, match="not complete"):
        made.open(copy)


@pytest.mark.parametrize("stored", ["", "[]", "{}", '{"format": 99, "made_from": {}}'])
def test_an_unreadable_manifest_is_refused(made: Made, copy: Path, stored: str) -> None:
    (copy / "cache.json").write_text(stored)
    with pytest.raises(InputError, match=r"cache\.json: .*another folder for .*cache_negatives"):
        made.open(copy)


def read_all(made: Made, folder: Path) -> None:
    edits_of(made.open(folder, counts=SIZES), CAPTIONS, 0)


def damage_rows(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def damage_head(path: Path) -> None:
    path.write_bytes(b"?" + path.read_bytes()[1:])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [damage_rows, damage_head, cut, Path.unlink])
def test_a_damaged_block_is_refused_and_the_command_mends_it(
    made: Made, copy: Path, damage: Callable[[Path], object]
) -> None:
    damage(copy / "block-00001.bin")
    with pytest.raises(InputError, match=r"block-00001\.bin: .*repaired by .*cache_negatives"):
        read_all(made, copy)
    make_cache(copy, made.pools, made.parts, made.encoder)
    assert content(copy) == content(made.folder / "cache")


def test_a_block_of_another_cache_is_not_taken_for_one_of_this(made: Made, copy: Path) -> None:
    shutil.copy(copy / "block-00000.bin", copy / "block-00001.bin")
    with pytest.raises(InputError, match="its edits are not those of captions 64 to 127"):
        made.open(copy)
    (copy / "cache.json").unlink()
    others = {**made.parts, "--seed": 1}
    pools = replace(made.pools, seed=1)
    make_cache(copy, pools, others, made.encoder)
    make_cache(made.folder / "seed1", pools, others, made.encoder)
    assert content(copy) == content(made.folder / "seed1")
    assert content(copy)["block-00000.bin"] != content(made.folder / "cache")["block-00000.bin"]


KILLED_AT = (1, 3, 5, 8)


def test_killed_anywhere_it_goes_on_to_the_same_bytes(made: Made, tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.negatives.test_build_cache import Made, make_cache
made = Made(Path({str(tmp_path)!r}))
for kill_at in {KILLED_AT}:
    child = os.fork()
    if child == 0:
        flush, calls = os.fsync, 0
        def fsync(file):
            global calls
            calls += 1
            if calls == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            flush(file)
        os.fsync = fsync
        make_cache(made.folder / str(kill_at), made.pools, made.parts, made.encoder)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, timeout=100)
    for kill_at in KILLED_AT:
        folder = tmp_path / str(kill_at)
        with pytest.raises(InputError):
            made.open(folder)
        make_cache(folder, made.pools, made.parts, made.encoder)
        assert content(folder) == content(made.folder / "cache")


def test_what_is_done_is_not_encoded_again(made: Made, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made.encoder, "encode", None)
    make_cache(copy, made.pools, made.parts, made.encoder)
    assert content(copy) == content(made.folder / "cache")


def test_interrupting_keeps_what_is_done(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = blocks.write_block

    def interrupted(path: Path, *rest: Any) -> None:
        if path.name == "block-00002.bin":
            raise KeyboardInterrupt
        write(path, *rest)

    monkeypatch.setattr(build_cache, "write_block", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_cache(tmp_path / "cache", made.pools, made.parts, made.encoder)
    assert "2 of 3 blocks are done and kept" in caplog.text
    assert sorted(content(tmp_path / "cache")) == [".lock", "block-00000.bin", "block-00001.bin", "cache.json"]
    monkeypatch.undo()
    make_cache(tmp_path / "cache", made.pools, made.parts, made.encoder)
    assert content(tmp_path / "cache") == content(made.folder / "cache")


def test_a_second_maker_is_refused(made: Made, copy: Path) -> None:
    with (copy / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is making this cache"):
            make_cache(copy, made.pools, made.parts, made.encoder)
    make_cache(copy, made.pools, made.parts, made.encoder)


def test_a_cache_on_a_poor_disk(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = edits_of(made.open(made.folder / "cache"), CAPTIONS[:9], 0)
    refuse_all(monkeypatch)
    make_cache(tmp_path / "cache", made.pools, made.parts, made.encoder)
    assert content(tmp_path / "cache") == content(made.folder / "cache")
    for kind, edits in edits_of(made.open(tmp_path / "cache"), CAPTIONS[:9], 0).items():
        before = expected[kind]
        assert edits is not None
        assert before is not None
        assert torch.equal(edits.queries.values, before.queries.values)


def test_says_size_and_time_and_refuses_a_full_disk(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 4000))
    ticks = itertools.count(0, 0.001)  # a busy machine takes longer
    monkeypatch.setattr(build_cache, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    with pytest.raises(InputError, match=r"needs about 0\.\d MB, 4000 bytes are free; --pool_size"):
        make_cache(tmp_path / "cache", made.pools, made.parts, made.encoder)
    said = capsys.readouterr().out
    assert "1280 edits of 150 captions to encode on cpu, about" in said
    assert "free) and 0 seconds" in said
    assert not list((tmp_path / "cache").glob("block*"))


def test_the_size_that_it_says_is_the_size_that_it_takes(made: Made) -> None:
    captions = range(len(CAPTIONS))
    said, _ = build_cache._estimate(made.pools, captions, made.pools.count(captions), made.encoder)
    taken = sum(path.stat().st_size for path in (made.folder / "cache").glob("block*"))
    assert abs(said - taken) < 0.02 * taken


def test_features_that_are_not_finite_are_refused(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = made.encoder.encode

    def broken(sentences: list[str]) -> Any:
        rows = encode(sentences)
        rows.values[-1, -1] = float("nan")
        return rows

    monkeypatch.setattr(made.encoder, "encode", broken)
    with pytest.raises(InputError, match=r"NaN or infinity for edits of 'video0#enc#0'"):
        make_cache(tmp_path / "cache", made.pools, made.parts, made.encoder)
    assert not list((tmp_path / "cache").glob("block*"))
