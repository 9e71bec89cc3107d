import fcntl
import itertools
import json
import pickle
import shutil
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from method.data.cache import rows_file
from method.data.cache.rows_file import RowsFile
from method.data.captions import Caption
from method.data.edits import KINDS, Kind
from method.negatives import build_cache
from method.negatives.build_cache import Pools, make_cache
from method.negatives.cache import compute_fingerprint, read_manifest, write_manifest
from method.negatives.cached import CachedNegatives
from method.negatives.vocabulary import Vocabulary
from method.runtime.errors import InputError
from method.runtime.files import digest_of
from method.text.encoder import TextEncoder
from method.text.encoder_files import encoder_digest
from tests.helpers.poor_disk import refuse_all
from tests.helpers.reference_model import split_values
from tests.helpers.small_negatives import edits_of, make_captions, make_editors, read_vocabularies_in
from tests.helpers.tiny_text_encoder import WIDTH, make_text_encoder

CAPTIONS = make_captions(150)  # three blocks, the last one not full
SIZES: dict[Kind, int] = {"action": 4, "object": 6}
COUNTS: dict[Kind, int] = {"action": 2, "object": 3}


class Made:
    """A cache of CAPTIONS and its inputs."""

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
        return compute_fingerprint(CAPTIONS, vocabularies, encoder_digest(self.encoder_folder), **chosen)

    def make(self, name: str) -> Path:
        make_cache(self.folder / name, self.pools, self.parts, self.encoder)
        return self.folder / name

    def open(self, folder: Path, **changes: Any) -> CachedNegatives:
        given = {"captions": CAPTIONS, "expected": self.parts, "counts": COUNTS, "seed": 666, **changes}
        return CachedNegatives(folder, **given)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Bit-identical features need the same order of summation."""
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


def stored_edits(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The features of all edits of a cache by their ids."""
    edits = {}
    for path in sorted(folder.glob("block*")):
        rows = RowsFile(path)
        for item_id, length in zip(rows.ids, rows.lengths, strict=True):
            edits[item_id] = np.empty((length, rows.width), np.float16)
            assert rows.read_into(item_id, edits[item_id])
    return edits


def test_pools_hold_the_features_of_single_sentences(made: Made) -> None:
    assert read_manifest(made.folder / "cache", made.parts).complete
    edits = [(caption.id, *edit) for index, caption in enumerate(CAPTIONS) for edit in made.pools.edits(index)]
    stored = stored_edits(made.folder / "cache")
    for (caption_id, kind, word, sentence), (item_id, rows) in zip(edits, stored.items(), strict=True):
        assert item_id.startswith(f"{caption_id}/{kind}/{word}/")
        single = made.encoder.encode([sentence]).values.half().numpy()
        np.testing.assert_allclose(rows, single, atol=1e-3)


def test_pools_have_the_given_size_and_never_contain_the_caption(made: Made) -> None:
    for index, caption in enumerate(CAPTIONS):
        edits = list(made.pools.edits(index))
        assert Counter(kind for kind, _, _ in edits) == ({} if index % 7 == 0 else SIZES)
        assert caption.text not in [sentence for *_, sentence in edits]


def test_draws_are_even_distinct_and_reproducible(made: Made) -> None:
    """Captions from all three blocks, in another order, one of them twice."""
    cached, again = made.open(made.folder / "cache"), made.open(made.folder / "cache")
    id_of = {rows.tobytes(): item_id for item_id, rows in stored_edits(made.folder / "cache").items()}
    batch = [*CAPTIONS[60:70], CAPTIONS[149], *CAPTIONS[1:5], CAPTIONS[9], CAPTIONS[149]]
    draws = set()
    for epoch in range(8):
        prepared, repeated = cached.prepare(batch, epoch), again.prepare(batch, epoch)
        assert torch.equal(prepared.rows.values, repeated.rows.values)
        drawn = [id_of[rows.numpy().tobytes()].rsplit("/", 3) for rows in split_values(prepared.rows)]
        assert [caption_id for caption_id, *_ in drawn] == [batch[owner].id for owner in prepared.owner_E.tolist()]
        assert [kind for _, kind, *_ in drawn] == [kind for kind in KINDS for _ in range(prepared.counts[kind])]
        for kind, owners in zip(KINDS, prepared.owner_E.split(list(prepared.counts.values())), strict=True):
            editable = {i: COUNTS[kind] for i, caption in enumerate(batch) if "Nobody" not in caption.text}
            assert Counter(owners.tolist()) == editable
        of_one = [tuple(edit) for edit in drawn if edit[:2] == [CAPTIONS[9].id, "object"]]
        assert len(set(of_one)) == 3
        # Two nouns: two of the three edits replace one, and the third the other.
        assert sorted(Counter(word for _, _, word, _ in of_one).values()) == [1, 2]
        draws.add(tuple(of_one))
    assert len(draws) > 3


def test_draws_do_not_depend_on_the_batch(made: Made) -> None:
    cached = made.open(made.folder / "cache")
    alone = edits_of(cached, [CAPTIONS[30]], 2)["action"]
    together = edits_of(cached, CAPTIONS[29:33], 2)["action"]
    assert alone is not None
    assert together is not None
    rows = together.queries.values[together.owner_E[together.queries.layout.owner_N] == 1]
    assert torch.equal(rows, alone.queries.values)


def test_a_batch_without_edits_has_none(made: Made) -> None:
    cached = made.open(made.folder / "cache")
    assert edits_of(cached, [CAPTIONS[0], CAPTIONS[7]], 0) == {"action": None, "object": None}
    assert cached.count_editable() == {"action": 128, "object": 128}


def test_it_can_be_sent_to_other_processes(made: Made) -> None:
    cached = made.open(made.folder / "cache")
    here = edits_of(cached, CAPTIONS, 1)["object"]
    there = pickle.loads(pickle.dumps(cached))
    assert len(pickle.dumps(cached)) < 100_000
    again = edits_of(there, CAPTIONS, 1)["object"]
    assert here is not None
    assert again is not None
    assert torch.equal(here.queries.values, again.queries.values)


@pytest.mark.parametrize(("part", "value", "named"), [
    ("captions", "0", "captions "),
    ("action vocabulary", "0", "action vocabulary "),
    ("object vocabulary", "0", "object vocabulary "),
    ("text encoder", "0", "text encoder "),
    ("--max_desc_l", 30, "--max_desc_l 12, expected 30"),
    ("--q_feat_size", 64, f"--q_feat_size {WIDTH}, expected 64"),
    ("--seed", 520, "--seed 666, expected 520"),
])  # fmt: skip
def test_a_cache_built_from_something_else_is_refused_by_name(made: Made, part: str, value: Any, named: str) -> None:
    other = {**made.parts, part: value}
    before = content(made.folder / "cache")
    for use in (
        lambda: made.open(made.folder / "cache", expected=other),
        lambda: make_cache(made.folder / "cache", made.pools, other, made.encoder),
    ):
        with pytest.raises(InputError, match="built from something else") as caught:
            use()
        assert named in str(caught.value)
        assert str(caught.value).count("expected") == 1
    assert content(made.folder / "cache") == before


def test_the_fingerprint_names_what_changed(made: Made) -> None:
    action, things = read_vocabularies_in(made.folder, CAPTIONS)
    first = CAPTIONS[0]

    def changed(captions: list[Caption] = CAPTIONS, action: Vocabulary = action, **flags: int) -> set[str]:
        parts = compute_fingerprint(captions, [action, things], encoder_digest(made.encoder_folder), **flags)
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


def test_a_missing_or_incomplete_cache_is_refused(made: Made, copy: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no hard negative cache"):
        made.open(tmp_path / "nowhere")
    write_manifest(copy, replace(read_manifest(copy, {}), complete=False))
    with pytest.raises(InputError, match="is incomplete"):
        made.open(copy)


@pytest.mark.parametrize("stored", ["", "[]", "{}", '{"format": 99, "made_from": {}}'])
def test_an_unreadable_manifest_is_refused(made: Made, copy: Path, stored: str) -> None:
    (copy / "cache.json").write_text(stored)
    with pytest.raises(InputError, match=r"cache\.json: .*another --neg_cache folder.*cache_negatives"):
        made.open(copy)


def read_all(made: Made, folder: Path) -> None:
    edits_of(made.open(folder, counts=SIZES), CAPTIONS, 0)


def flip_first_bit(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


def flip_last_bit(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip_first_bit, flip_last_bit, truncate, Path.unlink])
def test_a_corrupt_block_is_refused_and_the_command_repairs_it(
    made: Made, copy: Path, damage: Callable[[Path], object]
) -> None:
    damage(copy / "block-00001.rows")
    with pytest.raises(InputError, match=r"block-00001\.rows: .*repair it with .*cache_negatives"):
        read_all(made, copy)
    make_cache(copy, made.pools, made.parts, made.encoder)
    assert content(copy) == content(made.folder / "cache")


def test_a_block_of_another_cache_or_other_captions_is_refused(made: Made, copy: Path) -> None:
    shutil.copy(copy / "block-00000.rows", copy / "block-00001.rows")
    with pytest.raises(InputError, match="expected edits of captions 64 to 127"):
        made.open(copy)
    (copy / "cache.json").unlink()
    others = {**made.parts, "--seed": 1}
    pools = replace(made.pools, seed=1)
    make_cache(copy, pools, others, made.encoder)
    make_cache(made.folder / "seed1", pools, others, made.encoder)
    assert content(copy) == content(made.folder / "seed1")
    assert content(copy)["block-00000.rows"] != content(made.folder / "cache")["block-00000.rows"]


def test_complete_blocks_are_not_encoded_again(made: Made, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made.encoder, "encode", None)
    make_cache(copy, made.pools, made.parts, made.encoder)
    assert content(copy) == content(made.folder / "cache")


def test_interrupting_keeps_complete_blocks(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = rows_file.write_rows

    def interrupted(path: Path, *rest: Any) -> None:
        if path.name == "block-00002.rows":
            raise KeyboardInterrupt
        write(path, *rest)

    monkeypatch.setattr(build_cache, "write_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_cache(tmp_path / "cache", made.pools, made.parts, made.encoder)
    assert "2 of 3 blocks are saved" in caplog.text
    assert sorted(content(tmp_path / "cache")) == [".lock", "block-00000.rows", "block-00001.rows", "cache.json"]
    monkeypatch.undo()
    make_cache(tmp_path / "cache", made.pools, made.parts, made.encoder)
    assert content(tmp_path / "cache") == content(made.folder / "cache")


def test_two_processes_cannot_build_it_at_once(made: Made, copy: Path) -> None:
    with (copy / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is building this cache"):
            make_cache(copy, made.pools, made.parts, made.encoder)
    make_cache(copy, made.pools, made.parts, made.encoder)


def test_a_cache_on_a_limited_file_system(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = edits_of(made.open(made.folder / "cache"), CAPTIONS[:9], 0)
    refuse_all(monkeypatch)
    make_cache(tmp_path / "cache", made.pools, made.parts, made.encoder)
    assert content(tmp_path / "cache") == content(made.folder / "cache")
    for kind, edits in edits_of(made.open(tmp_path / "cache"), CAPTIONS[:9], 0).items():
        before = expected[kind]
        assert edits is not None
        assert before is not None
        assert torch.equal(edits.queries.values, before.queries.values)


def test_prints_size_and_time_and_refuses_a_full_disk(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 4000))
    ticks = itertools.count(0, 0.001)  # a busy machine takes longer
    monkeypatch.setattr(build_cache, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    with pytest.raises(InputError, match=r"needs about 1\.0 MB, 4000 bytes are free; reduce --pool_size"):
        make_cache(tmp_path / "cache", made.pools, made.parts, made.encoder)
    printed = capsys.readouterr().out
    assert "1280 edits of 150 captions to encode on cpu, about" in printed
    assert "free) and 0 seconds" in printed
    assert not list((tmp_path / "cache").glob("block*"))


def write_format_1(folder: Path) -> None:
    """Rewrite a cache as version 0.1.0 wrote it."""
    manifest = json.loads((folder / "cache.json").read_text())
    origin = int(digest_of(sorted(manifest["made_from"].items()))[:16], 16)
    numbers = {caption.id: number for number, caption in enumerate(CAPTIONS)}
    for path in sorted(folder.glob("block*")):
        rows = RowsFile(path)
        records, features = b"", path.read_bytes()[: int(rows.lengths.sum()) * WIDTH * 2]
        for item_id, length, checksum in zip(rows.ids, rows.lengths, rows.checksums, strict=True):
            caption_id, kind, word, _ = item_id.rsplit("/", 3)
            numbered = numbers[caption_id], ["action", "object"].index(kind), int(word)
            records += struct.pack("<IBHHI", *numbered, length, checksum)
        header = struct.pack("<8sQII", b"A3PNEG\0\1", origin, len(rows.ids), zlib.crc32(records))
        path.with_suffix(".bin").write_bytes(header + records + features)
        path.unlink()
    (folder / "cache.json").write_text(json.dumps({**manifest, "format": 1}))


def test_a_cache_in_format_1_is_converted_without_encoding(
    made: Made, copy: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_format_1(copy)
    with pytest.raises(InputError, match=r"in format 1, expected 2; convert it, .*cache_negatives"):
        made.open(copy)
    flip_last_bit(copy / "block-00002.bin")
    encode = made.encoder.encode
    encoded: list[str] = []

    def record(sentences: list[str]) -> Any:
        encoded.extend(sentences)
        return encode(sentences)

    monkeypatch.setattr(made.encoder, "encode", record)
    make_cache(copy, made.pools, made.parts, made.encoder)
    assert content(copy) == content(made.folder / "cache")
    assert "block-00002.bin: corrupt rows; rebuilding" in caplog.text
    of_corrupt_block = {sentence for number in range(128, 150) for *_, sentence in made.pools.edits(number)}
    assert set(encoded) == of_corrupt_block


def test_features_that_are_not_finite_are_refused(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = made.encoder.encode

    def broken(sentences: list[str]) -> Any:
        rows = encode(sentences)
        rows.values[-1, -1] = float("nan")
        return rows

    monkeypatch.setattr(made.encoder, "encode", broken)
    with pytest.raises(InputError, match=r"yields NaN or infinity for edits of 'video0#enc#0'"):
        make_cache(tmp_path / "cache", made.pools, made.parts, made.encoder)
    assert not list((tmp_path / "cache").glob("block*"))
