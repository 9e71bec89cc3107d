"""Branches beside those of the published flags: what they mean, and that wrong ones are named."""

from pathlib import Path

import pytest

from method.config import options as config
from method.config.architecture import make_architecture
from method.config.options import plain, read_options
from method.config.settings import negatives_settings
from method.config.training_settings import training_settings
from method.data.edits import KINDS
from method.model.architecture import Architecture
from method.model.branch_spec import BranchSpec, fused_weights
from method.runtime.errors import InputError

BOTH = ["--phrase_action_branch", "--flow_feat"]
FUSED = [*BOTH, "--cross_branch_fusion", "--deformable_attn", "--deformable_offset_scale", "9"]
AUDIO = "branches: {audio: {key: audio_feat, width: 7, attends_to: object}}"
NO_PUBLISHED = "action_branch: false\nphrase_action_branch: false\n"


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(config, "CONFIGS", tmp_path)
    return tmp_path / "mine.yaml"


def architecture(*flags: str) -> Architecture:
    return make_architecture(read_options(["--dataset_name", "mine", *flags]))


@pytest.mark.parametrize(("flags", "expected"), [
    ([], {"action": ("i3d_feat", 1024, None, 0)}),
    (["--phrase_action_branch", "--no_action_branch"], {"object": ("i3d_feat", 1024, None, 0)}),
    (BOTH, {"action": ("i3d_feat", 1024, None, 0), "object": ("clip_feat", 512, None, 0)}),
    (FUSED, {"action": ("i3d_feat", 1024, "object", 9), "object": ("clip_feat", 512, None, 0)}),
    ([*FUSED, "--cross_attn_q", "clip_q"],
        {"action": ("i3d_feat", 1024, None, 0), "object": ("clip_feat", 512, "action", 9)}),
    ([*FUSED, "--cross_attn_q", "double_q"],
        {"action": ("i3d_feat", 1024, "object", 9), "object": ("clip_feat", 512, "action", 2)}),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")  # fmt: skip
def test_branches_of_the_published_flags(
    mine: Path, flags: list[str], expected: dict[str, tuple[str, int, str | None, float]]
) -> None:
    mine.write_text("{}")
    made = architecture(*flags).branches
    assert {name: (spec.key, spec.width, spec.attends_to) for name, spec in made.items()} == {
        name: values[:3] for name, values in expected.items()
    }
    attending = {name: spec.offset_scale for name, spec in made.items() if spec.attends_to}
    assert attending == {name: values[3] for name, values in expected.items() if values[2]}


def test_a_yaml_adds_a_branch_and_a_flag_takes_it_away(mine: Path, caplog: pytest.LogCaptureFixture) -> None:
    mine.write_text(AUDIO)
    made = architecture(*FUSED)
    assert made.branches["audio"] == BranchSpec("audio_feat", 7, "object", None, 9.0)
    assert made.fusions == {"action": "object", "audio": "object"}
    assert list(architecture(*FUSED, "--branches", "{}").branches) == ["action", "object"]
    assert architecture(*BOTH, "--no_cross_branch_fusion").fusions == {}
    assert "attends_to of audio has no effect without --cross_branch_fusion" in caplog.text
    more = "{sound: {key: s, width: 3, weight: 0.5, offset_scale: 1}}"
    assert architecture(*FUSED, "--branches", more).branches["sound"] == BranchSpec("s", 3, None, 0.5, 1)


def test_branches_travel_with_a_run(mine: Path) -> None:
    mine.write_text(AUDIO)
    kept = plain(read_options(["--dataset_name", "mine", *FUSED]))
    assert type(kept["branches"]) is dict
    assert type(kept["branches"]["audio"]) is dict
    mine.write_text("{}")
    again = make_architecture(read_options(["--dataset_name", "mine"], saved=lambda given: kept))
    assert again.branches["audio"].width == 7
    assert Architecture.from_dict(again.as_dict()) == again


@pytest.mark.parametrize(("content", "message"), [
    ("branches: 3", "expected 'name: {key: ..., width: ...}' for each branch, found 3"),
    ("branches: {audio: 3}", ".audio: expected 'name: {key: ..., width: ...}' for each branch, found 3"),
    ("branches: {audio: {key: a}}", ".audio: width missing"),
    ("branches: {audio: {}}", ".audio: key and width missing"),
    ("branches: {audio: {key: a, widht: 3}}",
        ".audio: widht: no such key, expected key, width, attends_to, weight, offset_scale, edits"),
    ("branches: {audio: {key: a, width: x}}", ".audio.width: expected a whole number from 1 to 1048576, found 'x'"),
    ("branches: {audio: {key: a, width: 0}}", ".audio.width: expected a whole number from 1 to 1048576, found 0"),
    ("branches: {audio: {key: i3d_feat, width: 5}}",
        ".audio.width: expected 1024 as branch action has of i3d_feat, found 5"),
    ("branches: {audio: {key: a/b, width: 3}}",
        ".audio.key: expected the name of a stream in the feature file, found 'a/b'"),
    ("branches: {audio: {key: a, width: 3, attends_to: audio}}",
        ".audio.attends_to: expected one of the branches action, found itself"),
    ("branches: {audio: {key: a, width: 3, attends_to: object}}",
        ".audio.attends_to: expected one of the branches action, found 'object'"),
    ("branches: {audio: {key: a, width: 3, weight: -1}}",
        ".audio.weight: expected a number from 0 to 1048576, found -1"),
    ("branches: {audio: {key: a, width: 3, edits: both}}",
        ".audio.edits: expected one of action, object, found 'both'"),
    ("branches: {my-audio: {key: a, width: 3}}",
        ".'my-audio': expected a name of letters, digits and _ that begins with a letter"),
    ("branches: {7: {key: a, width: 3}}", ".7: expected a name of letters, digits and _ that begins with a letter"),
    ("branches: {fused: {key: a, width: 3}}", ".fused: this name is reserved, expected another"),
    ("branches: {videos: {key: a, width: 3}}", ".videos: this name is reserved, expected another"),
    ("branches: {keys: {key: a, width: 3}}", ".keys: this name is reserved, expected another"),
    ("branches: {object: {key: a, width: 3}}",
        ".object: --phrase_action_branch makes the branch of this name, expected another name"),
], ids=lambda text: text[:50])  # fmt: skip
def test_wrong_branches_are_named(mine: Path, content: str, message: str) -> None:
    mine.write_text(content)
    with pytest.raises(InputError) as caught:
        architecture()
    index = "" if message.startswith(".") else ": "
    assert str(caught.value) == f"{mine}: branches{index}{message}"


@pytest.mark.parametrize(("content", "flags", "message"), [
    ("branches: {a: {key: a, width: 3}, a: {key: b, width: 3}}", [], r"mine\.yaml: not valid YAML .*'a' occurs twice"),
    ("margin: 0.1\nmargin: 0.2", [], r"mine\.yaml: not valid YAML .*'margin' occurs twice"),
    ("{}", ["--branches", "{a: {key: a, width: 0}}"], r"--branches\.a\.width: expected a whole number"),
    ("{}", ["--branches", "{a: ["], "--branches: not valid YAML"),
    (NO_PUBLISHED, [], "--action_branch False: expected true"),
    (NO_PUBLISHED + "branches: {a: {key: a, width: 3}}", ["--cross_branch_fusion"],
        "--cross_branch_fusion True: expected both branches on .* or a branch with attends_to"),
    (NO_PUBLISHED + "branches: {a: {key: a, width: 3}}", ["--neg_query_loss", "both"],
        "--neg_query_loss both: expected --action_branch or --phrase_action_branch on, or a branch with such edits"),
    (NO_PUBLISHED + "branches: {a: {key: a, width: 3, edits: object}}", ["--neg_query_loss", "action"],
        "--neg_query_loss action: expected"),
    ("branches: {a: {key: a, width: 3, weight: 0}}", ["--fusion_weight", "0"],
        r"--fusion_weight 0\.0: the weights of the branches action, a in the fused score are all 0"),
    ("{}", ["--losses", "triplet,x"], "--losses triplet,x: expected some of triplet,nce,.*, separated by commas"),
    ("{}", ["--losses", "nce,nce"], "--losses nce,nce: expected some of"),
    ("{}", ["--losses", "negative_queries"], "--losses negative_queries: expected some of"),
    ("{}", ["--nce_weight", "-1"], r"--nce_weight -1\.0: expected at least 0"),
    ("{}", ["--head", "votes"], "--head votes: expected one of frames, clips, windows"),
])  # fmt: skip
def test_what_does_not_go_together(mine: Path, content: str, flags: list[str], message: str) -> None:
    mine.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        architecture(*flags)
    assert "\n" not in str(caught.value)


def test_weights_of_the_fused_score(mine: Path) -> None:
    two = architecture_of(mine, "{}", *BOTH)
    assert fused_weights(two, 0.3) == {"action": 0.3, "object": 0.7}
    assert fused_weights({"object": two["object"]}, 0.0) == {"object": 1.0}
    three = architecture_of(mine, AUDIO, *BOTH)
    weights = fused_weights(three, 0.3)
    assert weights == pytest.approx({"action": 0.3 * 3 / 4, "object": 0.7 * 3 / 4, "audio": 1 / 4})
    assert sum(weights.values()) == pytest.approx(1)
    own = architecture_of(
        mine, NO_PUBLISHED + "branches: {a: {key: a, width: 3, weight: 3}, b: {key: b, width: 3, weight: 1}}"
    )
    assert fused_weights(own, 0.9) == {"a": 0.75, "b": 0.25}


def architecture_of(mine: Path, content: str, *flags: str) -> dict[str, BranchSpec]:
    mine.write_text(content)
    return architecture(*flags).branches


@pytest.mark.parametrize(("flags", "kinds"), [
    ([], {}),
    (["--neg_query_loss", "both"], {"action": "action", "object": "object", "audio": "object"}),
    (["--neg_query_loss", "object"], {"action": "object", "object": "object", "audio": "object"}),
    (["--neg_query_loss", "action"], {"action": "action", "object": "action"}),
    (["--neg_query_loss", "both", "--neg_query_loss_branch", "i3d"], {"action": "action", "audio": "object"}),
    (["--neg_query_loss", "both", "--no_action_branch", "--no_phrase_action_branch"], {"audio": "object"}),
], ids=" ".join)  # fmt: skip
def test_the_kind_of_edits_of_each_branch(mine: Path, flags: list[str], kinds: dict[str, str]) -> None:
    mine.write_text(
        "phrase_action_branch: true\nbranches: {audio: {key: a, width: 3, edits: object}, b: {key: b, width: 4}}"
    )
    options = read_options(["--dataset_name", "mine", *flags])
    assert training_settings(options).loop.edit_kinds == kinds
    assert make_architecture(options).temperatures == tuple(kinds)
    assert negatives_settings(options).needed == tuple(kind for kind in KINDS if kind in kinds.values())
