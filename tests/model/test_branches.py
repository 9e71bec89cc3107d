"""Models with other branches than the published two, and architectures as older files hold them."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from method.model.architecture import Architecture
from method.model.branch_spec import BranchSpec
from method.model.published import to_published
from method.runtime.errors import InputError
from tests.helpers.small_models import SMALL, VARIANTS, changed, lively_model, random_rows, random_streams

AUDIO = BranchSpec("audio_feat", 7, "object", offset_scale=3.0)
THREE = {**SMALL.branches, "audio": AUDIO}
LENGTHS = [7, 1, 20], [5, 9, 12]


@pytest.mark.parametrize("fusion", ["deformable", "attention"])
def test_a_branch_attends_to_the_unfused_frames_of_another(fusion: Any) -> None:
    branches = {**THREE, "audio": replace(AUDIO, attends_to="action")}  # whose own frames attend to the object's
    model = lively_model(branches=branches, fusion=fusion, temperatures=())
    streams = random_streams(model.architecture, *LENGTHS)
    with torch.no_grad():
        before = model.encode_frames(streams)
        after = model.encode_frames({**streams, "object": random_rows(LENGTHS[1], 6, seed=9)})
        moved = model.encode_frames({**streams, "action": random_rows(LENGTHS[0], 10, seed=9)})
        alone = model.branch("audio").frames(streams["audio"])
    assert not torch.allclose(before["action"].values, after["action"].values)
    assert torch.equal(before["audio"].values, after["audio"].values)
    assert not torch.allclose(before["audio"].values, moved["audio"].values)
    assert not torch.allclose(before["audio"].values, alone.values)


def test_no_gradient_of_a_branch_reaches_the_one_it_attends_to() -> None:
    model = lively_model(branches=THREE, temperatures=())
    model.encode_videos(random_streams(model.architecture, *LENGTHS))["audio"].values.sum().backward()
    assert all(weight.grad is not None for weight in model.branch("audio").frames.parameters())
    assert all(weight.grad is None for weight in model.branch("object").parameters())
    assert all(weight.grad is None for weight in model.branch("action").parameters())


def test_a_third_branch_changes_nothing_of_the_others() -> None:
    two, three = lively_model(), lively_model(branches=THREE)
    three.load_state_dict(two.state_dict(), strict=False)
    streams = random_streams(three.architecture, *LENGTHS)
    with torch.no_grad():
        found, expected = three.encode_videos(streams), two.encode_videos(streams)
    for name in ("action", "object"):
        torch.testing.assert_close(found[name].values, expected[name].values)


def test_a_third_branch_has_no_published_form() -> None:
    model = lively_model(branches=THREE)
    with pytest.raises(InputError, match=r"a published checkpoint has the branches action and object, not audio$"):
        to_published(model.state_dict(), model.architecture)


def old_form(query: str, **fields: Any) -> dict[str, Any]:
    """The deformable architecture as checkpoints held it before branches were a table."""
    values = {name: value for name, value in SMALL.as_dict().items() if name not in ("branches", "head")}
    values |= {"action_width": 10, "object_width": 6, "object_sees": "clip", "offset_scale": 5.0, "fusion_asks": query}
    return {**values, **fields}


@pytest.mark.parametrize("name", [name for name in VARIANTS if "-" in name])
def test_architectures_of_two_branches_are_read(name: str) -> None:
    expected = changed(SMALL, **VARIANTS[name])
    fields = {"temperatures": ("action", "object"), **VARIANTS[name]}
    query = fields.pop("query", "i3d_q")
    if fields.get("fusion") == "none":  # whose frames attended was stored all the same
        expected = changed(SMALL, **{**VARIANTS[name], "query": None})
    assert Architecture.from_dict(old_form(query, **fields)) == expected


def test_new_fields_have_defaults_and_unknown_ones_are_named() -> None:
    values = SMALL.as_dict()
    del values["head"]
    values["branches"] = {"action": {"key": "i3d_feat", "width": 10, "attends_to": "b"}, "b": {"key": "b", "width": 1}}
    values["temperatures"] = ["action"]
    read = Architecture.from_dict(values)
    assert (read.head, read.branches["b"]) == ("frames", BranchSpec("b", 1, None, None, 0.0))
    with pytest.raises(ValueError, match=r"^'sampler': no such field$"):
        Architecture.from_dict({**values, "sampler": 3})
    with pytest.raises(ValueError, match=r"^no branches, and no object_width as older files have$"):
        Architecture.from_dict({name: value for name, value in old_form("i3d_q").items() if name != "object_width"})
    with pytest.raises(ValueError, match=r"^fusion_asks is 'x', expected one of i3d_q, clip_q, double_q$"):
        Architecture.from_dict(old_form("x"))
