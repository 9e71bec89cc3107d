import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from method.config.settings import encoder_settings, negatives_settings
from method.data.captions import Caption
from method.data.edits import KINDS, EditedQueries, Kind, NegativeSource, PreparedEdits
from method.data.shared_memory import to_shared_memory
from method.negatives.build_cache import Pools, make_cache
from method.negatives.online import OnlineNegatives
from method.negatives.source import cache_fingerprint, open_negatives, read_vocabularies
from method.runtime.errors import InputError
from method.text.encoder import TextEncoder, open_text_encoder
from tests.helpers.paths import REPOSITORY
from tests.helpers.small_negatives import edits_of, make_captions, make_editors
from tests.helpers.tiny_text_encoder import WIDTH, make_text_encoder

CPU = torch.device("cpu")
CAPTIONS = make_captions(40)
IDS = [caption.id for caption in CAPTIONS]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("negatives")
    make_editors(folder, CAPTIONS)
    files = {f"{part}_{kind}_dict": folder / f"{part}_{kind}.json" for part in ("id", "total") for kind in KINDS}
    return {
        **files,
        "dataset_name": "charades",
        "root_path": Path("/root of the data"),
        "text_encoder": make_text_encoder(folder / "encoder", [caption.text for caption in CAPTIONS]),
        "neg_query_loss": "both",
        "neg_query_loss_branch": "both",
        "branches": {},
        "action_branch": True,
        "phrase_action_branch": True,
        "neg_action_num": 3,
        "neg_object_num": 4,
        "neg_cache": None,
        "q_feat_size": WIDTH,
        "max_desc_l": 10,
        "text_layer": -1,
        "text_special_tokens": "keep",
        "seed": 666,
        "amp": "off",
    }


def opened(options: dict[str, Any], **changes: Any) -> NegativeSource:
    source = open_negatives(negatives_settings({**options, **changes}), CAPTIONS, IDS, CPU)
    assert source is not None
    return source


def fingerprint_of(options: dict[str, Any]) -> dict[str, Any]:
    settings = negatives_settings(options)
    return cache_fingerprint(settings, CAPTIONS, read_vocabularies(settings, IDS, KINDS))


def given(edits: EditedQueries | None) -> EditedQueries:
    assert edits is not None
    return edits


def test_online_edits_equal_captions_encoded_one_by_one(options: dict[str, Any]) -> None:
    encoder = TextEncoder(options["text_encoder"], WIDTH, 10, CPU)
    batch = CAPTIONS[5:20]
    made = edits_of(opened(options), batch, 3)
    for editor, count in zip(make_editors(options["id_action_dict"].parent, CAPTIONS), (3, 4), strict=True):
        sentences, owners = [], []
        for owner, caption in enumerate(batch):
            edits = editor.edits(caption, count, 666, 3, caption.id, editor.kind)
            sentences += edits
            owners += [owner] * len(edits)
        queries = given(made[editor.kind])
        single = [encoder.encode([sentence]).values for sentence in sentences]
        assert queries.owner_E.tolist() == owners
        assert queries.queries.layout.lengths == tuple(map(len, single))
        torch.testing.assert_close(queries.queries.values, torch.cat(single), atol=1e-6, rtol=0)
        assert {"Nobody" in batch[owner].text for owner in owners} == {False}


def test_on_a_cpu_edits_are_encoded_in_the_precision_of_training(options: dict[str, Any]) -> None:
    single, half = (given(edits_of(opened(options, amp=amp), CAPTIONS, 0)["action"]) for amp in ("off", "bf16"))
    assert half.queries.layout.lengths == single.queries.layout.lengths
    assert not torch.equal(half.queries.values, single.queries.values)
    torch.testing.assert_close(half.queries.values, single.queries.values, atol=2e-2, rtol=0)


def test_equal_edits_of_a_batch_are_encoded_once(options: dict[str, Any]) -> None:
    encoder = TextEncoder(options["text_encoder"], WIDTH, 10, CPU)
    editor = make_editors(options["id_action_dict"].parent, CAPTIONS)[0]
    online = OnlineNegatives([editor], {"action": 3}, encoder, 666)
    prepared = online.prepare([CAPTIONS[1], CAPTIONS[1]], 0)
    assert (len(prepared.rows), list(prepared.order)) == (3, [0, 1, 2, 0, 1, 2])
    repeated = given(online.queries(prepared, CPU)["action"])
    assert repeated.owner_E.tolist() == [0, 0, 0, 1, 1, 1]
    first, second = repeated.queries.values.chunk(2)
    assert torch.equal(first, second)


def test_a_batch_without_edits_has_none(options: dict[str, Any]) -> None:
    assert edits_of(opened(options), [CAPTIONS[0], CAPTIONS[7]], 0) == {"action": None, "object": None}
    assert edits_of(opened(options), [], 0) == {"action": None, "object": None}


def test_a_batch_where_only_one_kind_has_edits(options: dict[str, Any], tmp_path: Path) -> None:
    nouns_only = [Caption("v#0", "v", "A man and the door."), Caption("v#1", "v", "A man opens the cup.")]
    make_editors(tmp_path, nouns_only)
    files = {name: tmp_path / path.name for name, path in options.items() if name.endswith("_dict")}
    source = open_negatives(negatives_settings({**options, **files}), nouns_only, ["v#0", "v#1"], CPU)
    assert source is not None
    made = edits_of(source, nouns_only[:1], 0)
    assert made["action"] is None
    assert given(made["object"]).owner_E.tolist() == [0] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_one_kind_alone(options: dict[str, Any], kind: Kind) -> None:
    both = edits_of(opened(options), CAPTIONS, 0)
    alone = edits_of(opened(options, neg_query_loss=kind), CAPTIONS, 0)
    assert list(alone) == [kind]
    assert given(alone[kind]).owner_E.equal(given(both[kind]).owner_E)


@pytest.mark.parametrize(("changes", "kind"), [
    ({"neg_query_loss_branch": "i3d"}, "action"),
    ({"neg_query_loss_branch": "clip"}, "object"),
    ({"phrase_action_branch": False}, "action"),
])  # fmt: skip
def test_the_kind_of_a_branch_without_the_loss_is_not_read(
    options: dict[str, Any], cached_options: dict[str, Any], changes: dict[str, Any], kind: Kind
) -> None:
    unread = {f"{part}_{other}_dict": Path("nowhere") for part in ("id", "total") for other in KINDS if other != kind}
    for given_options in (options, cached_options):
        both = edits_of(opened(given_options), CAPTIONS, 0)
        needed = edits_of(opened({**given_options, **unread}, **changes), CAPTIONS, 0)
        assert list(needed) == [kind]
        torch.testing.assert_close(given(needed[kind]).queries.values, given(both[kind]).queries.values)


def test_edits_depend_on_epoch_and_seed_only(options: dict[str, Any]) -> None:
    def values(seed: int, epoch: int) -> torch.Tensor:
        return given(edits_of(opened(options, seed=seed), CAPTIONS, epoch)["object"]).queries.values

    first = values(666, 0)
    assert torch.equal(first, values(666, 0))
    assert not torch.equal(first, values(666, 1)[: len(first)])
    assert not torch.equal(first, values(1, 0)[: len(first)])


@pytest.fixture(scope="module")
def cached_options(options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("cache")
    editors = make_editors(options["id_action_dict"].parent, CAPTIONS)
    encoder = TextEncoder(options["text_encoder"], WIDTH, 10, CPU)
    parts = fingerprint_of(options)
    make_cache(folder, Pools(CAPTIONS, editors, {"action": 99, "object": 99}, 666), parts, encoder)
    return {**options, "neg_cache": folder}


def test_cached_and_online_features_agree_to_half_precision(
    options: dict[str, Any], cached_options: dict[str, Any]
) -> None:
    """Drawing all edits gives the same features in both ways, in a different order."""
    everything = {"neg_action_num": 99, "neg_object_num": 99}
    for caption in CAPTIONS[1:4]:
        online = edits_of(opened(options, **everything), [caption], 0)
        cached = edits_of(opened(cached_options, **everything), [caption], 0)
        for kind in KINDS:
            ours, theirs = (given(made[kind]).queries for made in (online, cached))
            assert theirs.values.dtype == torch.float32
            left = list(theirs.values.split(theirs.layout.lengths))
            for one in ours.values.split(ours.layout.lengths):
                same = [i for i, two in enumerate(left) if len(one) == len(two) and (one - two).abs().max() < 1e-3]
                assert len(same) == 1
                left.pop(same[0])
            assert not left


def test_a_cache_is_enough_without_its_encoder(
    cached_options: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    made = edits_of(opened(cached_options, text_encoder=tmp_path / "nowhere"), CAPTIONS, 0)
    assert made["action"] is not None
    assert "34 of 40 training captions have object edits" in caplog.messages
    assert "nowhere: no such folder, so the cache is not checked against its text encoder" in caplog.text


def test_a_cache_of_another_encoder_is_refused(cached_options: dict[str, Any], tmp_path: Path) -> None:
    other = make_text_encoder(tmp_path / "other", [caption.text for caption in CAPTIONS], seed=1)
    with pytest.raises(InputError, match=r"text encoder .*, expected"):
        opened(cached_options, text_encoder=other)


def test_encoder_settings_change_the_edits_and_are_part_of_the_fingerprint(
    options: dict[str, Any], cached_options: dict[str, Any], tmp_path: Path
) -> None:
    settings = {"text_layer": -2, "text_special_tokens": "drop"}
    usual, other = (
        given(edits_of(opened({**options, "max_desc_l": 30, **more}), CAPTIONS, 0)["action"]) for more in ({}, settings)
    )
    assert other.queries.layout.lengths == tuple(length - 2 for length in usual.queries.layout.lengths)
    for name, value in settings.items():
        with pytest.raises(InputError, match=rf"--{name} .*, expected {value}"):
            opened({**cached_options, name: value})

    others = {**options, **settings, "neg_cache": tmp_path}
    editors = make_editors(tmp_path, CAPTIONS)
    parts = fingerprint_of(others)
    pools = Pools(CAPTIONS, editors, {"action": 99, "object": 99}, 666)
    make_cache(tmp_path, pools, parts, open_text_encoder(encoder_settings(others), CPU))
    everything = {"neg_action_num": 99, "neg_object_num": 99}
    online, cached = (
        given(edits_of(opened({**others, **everything, **more}), CAPTIONS[:4], 0)["action"])
        for more in ({"neg_cache": None}, {})
    )
    assert sorted(cached.queries.layout.lengths) == sorted(online.queries.layout.lengths)
    torch.testing.assert_close(cached.queries.values.sum(0), online.queries.values.sum(0), atol=2e-2, rtol=0)


def test_a_cache_without_recorded_settings_is_used_and_continued(
    options: dict[str, Any], cached_options: dict[str, Any], tmp_path: Path
) -> None:
    editors = make_editors(options["id_action_dict"].parent, CAPTIONS)
    parts = fingerprint_of(options)
    before = {name: value for name, value in parts.items() if not name.startswith("--text_")}
    assert len(before) == len(parts) - 2
    pools = Pools(CAPTIONS, editors, {"action": 99, "object": 99}, 666)
    encoder = open_text_encoder(encoder_settings(options), CPU)
    make_cache(tmp_path, pools, before, encoder)
    blocks = {path: path.stat().st_mtime_ns for path in tmp_path.glob("block-*")}
    old = {**options, "neg_cache": tmp_path}
    edits_of(opened(old), CAPTIONS, 0)
    with pytest.raises(InputError, match="--text_layer -1, expected -2"):
        opened(old, text_layer=-2)

    make_cache(tmp_path, pools, parts, encoder)
    assert blocks == {path: path.stat().st_mtime_ns for path in tmp_path.glob("block-*")}
    expected = edits_of(opened(cached_options), CAPTIONS, 0)
    made = edits_of(opened(old), CAPTIONS, 0)
    assert all(torch.equal(given(made[kind]).queries.values, given(expected[kind]).queries.values) for kind in KINDS)


def test_edits_are_prepared_without_the_model_and_its_device(options: dict[str, Any]) -> None:
    """A worker must not use the GPU of the main process."""
    encoder = pickle.loads(pickle.dumps(TextEncoder(options["text_encoder"], WIDTH, 10, CPU)))  # without the model
    encoder.device = torch.device("cuda", 99)
    editors = make_editors(options["id_action_dict"].parent, CAPTIONS)
    prepared = OnlineNegatives(editors, {"action": 3, "object": 4}, encoder, 666).prepare(CAPTIONS, 2)
    expected = edits_of(opened(options), CAPTIONS, 2)
    made = opened(options).queries(prepared, CPU)
    assert all(torch.equal(given(made[kind]).queries.values, given(expected[kind]).queries.values) for kind in KINDS)


class Epochs(torch.utils.data.Dataset[PreparedEdits]):
    """The edits of the same captions, epoch by epoch."""

    def __init__(self, source: NegativeSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return 4

    def __getitem__(self, epoch: int) -> PreparedEdits:
        prepared = to_shared_memory(self.source.prepare(CAPTIONS[:9], epoch))
        assert isinstance(prepared, PreparedEdits)
        if torch.utils.data.get_worker_info() is not None:
            assert prepared.rows.values.is_shared()
            assert prepared.owner_E.is_shared()
        return prepared


@pytest.mark.parametrize(("start", "cached"), [("fork", False), ("fork", True), ("spawn", False)])
def test_workers_prepare_the_same_as_the_main_process(
    options: dict[str, Any], cached_options: dict[str, Any], start: str, cached: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """Even after this process has used the threads of the tokenizer."""
    source = opened(cached_options if cached else options)
    here = [edits_of(source, CAPTIONS[:9], epoch) for epoch in range(4)]
    workers = 2 if start == "fork" else 1
    loader = torch.utils.data.DataLoader(
        Epochs(source), batch_size=None, num_workers=workers, multiprocessing_context=start, timeout=60
    )
    for expected, prepared in zip(here, loader, strict=True):
        made = source.queries(prepared, CPU)
        for kind in KINDS:
            ours, theirs = given(made[kind]), given(expected[kind])
            assert torch.equal(ours.queries.values, theirs.queries.values)
            assert torch.equal(ours.owner_E, theirs.owner_E)
    assert capfd.readouterr().err == ""


def test_without_the_loss_nothing_is_read_or_imported() -> None:
    script = """
import sys
import torch
from method.config.options import read_options
from method.config.settings import negatives_settings
from method.negatives.source import open_negatives
settings = negatives_settings(read_options(["--dataset_name", "charades"]))
assert open_negatives(settings, [], [], torch.device("cpu")) is None
assert "transformers" not in sys.modules and "tokenizers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, check=True)


@pytest.mark.parametrize(("path", "named"), [
    (
        Path("/root of the data/dataset/charades_i3d/nowhere.json"),
        r"--total_object_dict: no .*nowhere\.json; .*python utils/download_data\.py charades --root_path '/root of",
    ),
    (None, "--total_object_dict: dataset charades names no such file"),
])  # fmt: skip
def test_missing_vocabulary_files_have_a_remedy(options: dict[str, Any], path: Path | None, named: str) -> None:
    with pytest.raises(InputError, match=named):
        opened(options, total_object_dict=path)
    opened(options, total_object_dict=path, neg_query_loss="action")


def test_a_missing_encoder_has_a_remedy(options: dict[str, Any], tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "roberta-large", ignore_errors=True)
    with pytest.raises(InputError, match=r"roberta-large: no such folder.*python utils/download_roberta\.py"):
        opened(options, text_encoder=tmp_path / "roberta-large")
    with pytest.raises(InputError, match=r"roberta-base-tvr: no such folder.*python utils/tune_text_encoder\.py tvr"):
        opened(options, text_encoder=tmp_path / "roberta-base-tvr", dataset_name="tvr")
