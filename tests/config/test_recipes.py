"""Recipes: what they may hold, which values win, and the recipe of the features, which had this name before."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from method.config import options as config
from method.config.flags import make_parser
from method.config.options import CONFIGS, plain, read_options
from method.config.recipes import recipe_flags
from method.data.provenance import RECIPES
from method.model.published import published_architecture, to_published
from method.runtime.errors import InputError
from method.runtime.files import read_json, write_json
from method.training.checkpoint import load_model, stored_options
from method.training.resume import saved_options
from method.video.recipes import RECIPES as FEATURE_RECIPES
from tests.helpers.runs import Interruption, send
from tests.helpers.small_dataset import SmallDataset, metrics, run_evaluate, run_train
from tests.helpers.small_models import SMALL

FLAGS = recipe_flags(make_parser(""))


@pytest.fixture
def own_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that takes the place of configs/, with a base, a dataset and a recipe; also the working directory."""
    monkeypatch.setattr(config, "CONFIGS", tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "base.yaml").write_text("lr: 1e-4\nwd: 0.1\nmargin: 0.3\nbsz: 31\n")
    (tmp_path / "demo.yaml").write_text("base: base.yaml\nlr: 2e-4\nq_feat_size: 7\nn_epoch: 8\n")
    (tmp_path / "recipes" / "more.yaml").write_text("ema: 0.9\nlr: 3e-4\nwd: 0.2\nmargin: 0.4\n")
    return tmp_path


def read(*arguments: str, **more: Any) -> Any:
    return read_options(["--dataset_name", "demo", *arguments], **more)


def values(options: Any) -> tuple[Any, ...]:
    return tuple(options[name] for name in ("lr", "wd", "margin", "bsz", "q_feat_size", "ema"))


@pytest.mark.usefixtures("own_configs")
def test_flag_before_earlier_run_before_recipe_before_dataset_before_base() -> None:
    assert values(read()) == (2e-4, 0.1, 0.3, 31, 7, 0.0)
    assert values(read("--recipe", "published")) == values(read())
    assert values(read("--recipe", "more")) == (3e-4, 0.2, 0.4, 31, 7, 0.9)
    assert values(read("--recipe", "more", "--lr", "1", "--ema", "0")) == (1.0, 0.2, 0.4, 31, 7, 0.0)
    stored = plain(read("--recipe", "more", "--margin", "0.5"))
    assert stored["recipe"] == "more"
    again = read("--wd", "0", saved=lambda given: stored)
    assert (again.recipe, *values(again)) == ("more", 3e-4, 0.0, 0.5, 31, 7, 0.9)


def test_an_earlier_run_outlives_its_recipe(own_configs: Path) -> None:
    options = read("--recipe", "more")
    stored = plain(options)
    (own_configs / "recipes" / "more.yaml").unlink()
    assert read(saved=lambda given: stored) == options


def test_a_recipe_of_ones_own(own_configs: Path) -> None:
    (own_configs / "mine").mkdir()
    (own_configs / "mine" / "my.yaml").write_text("base: more.yaml\nwd: 0.5\n")
    options = read("--recipe", "mine/my.yaml")
    assert values(options) == (3e-4, 0.5, 0.4, 31, 7, 0.9)
    assert plain(options)["recipe"] == "mine/my.yaml"
    assert read("--root_path", "mine", "--recipe", "my.yaml").recipe == own_configs / "mine" / "my.yaml"
    assert read(saved=lambda given: plain(options)) == options


REFUSED = "not in a recipe, which has flags of the model, its losses and the training alone"


@pytest.mark.parametrize(("content", "message"), [
    ("lr: 1\nvideo_feat_path: x.hdf5\nseed: 3\n", rf"my\.yaml: video_feat_path, seed: {REFUSED}$"),
    ("q_feat_size: 3\n", f"q_feat_size: {REFUSED}"),
    ("branches: {}\n", f"branches: {REFUSED}"),
    ("recipe: plus\n", f"recipe: {REFUSED}"),
    ("recipe: charades\n", f"feature_recipe: {REFUSED}"),
    ("ema: much\n", r"my\.yaml: ema: expected a value of type float, found 'much'"),
    ("lr_schedule: steps\n", r"lr_schedule: expected one of linear, cosine, constant, found 'steps'"),
    ("ema: 1\n", r"--ema 1\.0: expected a fraction from 0 to below 1"),
    ("", "expected 'flag: value' lines"),
    ("ema: 0.1\nema: 0.2\n", "'ema' occurs twice"),
])  # fmt: skip
def test_wrong_recipes(own_configs: Path, content: str, message: str) -> None:
    (own_configs / "my.yaml").write_text(content)
    with pytest.raises(InputError, match=message):
        read("--recipe", "my.yaml")


@pytest.mark.usefixtures("own_configs")
@pytest.mark.parametrize(("recipe", "message"), [
    ("less", "--recipe less: expected one of published, more, or the path of a YAML file$"),
    ("./less.yaml", r"less\.yaml: no such file"),
    ("", "argument --recipe: expected a path, found ''"),
    *((name, f"argument --recipe: {name} is how features are made, expected --feature_recipe {name} ")
      for name in RECIPES),
])  # fmt: skip
def test_unknown_recipes(recipe: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read("--recipe", recipe)


def test_what_a_recipe_may_set() -> None:
    """What the data are and where, what only one call or machine has, and how epochs are selected, is not its own."""
    files = {name for name in FLAGS if name.endswith(("_path", "_txt", "_dict", "_ckpt", "_cache", "encoder"))}
    assert not files & FLAGS.keys()
    assert {"lr", "ema", "lr_schedule", "losses", "margin", "head", "hidden_size", "neg_query_loss"} <= FLAGS.keys()
    assert not {"seed", "device", "holdout_fraction", "branches", "recipe", "amp", "visual_feat_dim"} & FLAGS.keys()


@pytest.mark.parametrize("path", sorted((CONFIGS / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_of_this_repository(path: Path) -> None:
    changed = read_options(["--dataset_name", "charades", "--recipe", path.stem])
    published = read_options(["--dataset_name", "charades"])
    expected = yaml.safe_load(path.read_text())
    differ = {name for name in changed if changed[name] != published[name]} - {"recipe"}
    assert differ <= expected.keys() <= FLAGS.keys()
    assert differ


# Runs and checkpoints


def test_a_run_keeps_its_recipe(
    shared: SmallDataset, interrupt: Interruption, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    recipe = shared.root / "own recipe.yaml"
    recipe.write_text("ema: 0.5\nlr_schedule: cosine\nhidden_size: 32\n")
    flags = shared.flags("--recipe", recipe.name, "--n_epoch", "1", "--description", "by recipe")
    flags = [*flags[: flags.index("--hidden_size")], *flags[flags.index("--hidden_size") + 2 :]]
    interrupt.at(1, send(2))
    with pytest.raises(Exception, match="stopped and saved"):
        run_train(flags)
    interrupt.over()
    run = shared.results / "by recipe"
    with pytest.raises(InputError, match=r"keep its options: --recipe was own recipe\.yaml, is published$"):
        run_train(["--resume", str(run), "--device", "-1", "--recipe", "published"])
    recipe.write_text("ema: 0.6\n")
    with pytest.raises(InputError, match=r"keep its options: .*--ema was 0\.5, is 0\.6"):
        run_train([*flags, "--resume", "auto"])
    run_train(["--resume", str(run), "--device", "-1"])
    stored = stored_options(run / "model.ckpt") or {}
    assert (stored["recipe"], stored["ema"], stored["hidden_size"]) == ("own recipe.yaml", 0.5, 32)
    evaluated = run_evaluate(["--eval_ckpt", str(run / "model.ckpt"), "--device", "-1", "--recipe", "plus"])
    assert metrics(evaluated) == metrics(run)
    assert "--recipe plus: of a training, has no effect here" in caplog.messages
    assert read_json(evaluated / "opt.json")["recipe"] == "own recipe.yaml"


def test_a_released_checkpoint_knows_no_recipe(own_configs: Path, one_epoch: Path) -> None:
    (own_configs / "recipes" / "wide.yaml").write_text("hidden_size: 512\nn_heads: 2\n")
    loaded = load_model(one_epoch / "model.ckpt", SMALL)
    architecture = published_architecture(loaded.model.architecture)
    weights = loaded.model.state_dict() | {f"temperatures.{name}": torch.tensor(2.0) for name in ("action", "object")}
    torch.save({"model": to_published(weights, architecture), "epoch": 3}, own_configs / "released.ckpt")
    arguments = ["--only_eval", "--eval_ckpt", "released.ckpt"]
    options = read(*arguments, "--recipe", "wide", saved=saved_options)
    assert options == read(*arguments, saved=saved_options)
    assert options.recipe == "published"


# The recipe of the features


def test_names_of_feature_recipes() -> None:
    assert {*RECIPES} == {*FEATURE_RECIPES, "tvr"}


@pytest.mark.parametrize("name", RECIPES)
def test_yaml_files_of_earlier_versions(own_configs: Path, name: str) -> None:
    (own_configs / "demo.yaml").write_text(f"base: base.yaml\nrecipe: {name}\n")
    options = read()
    assert (options.feature_recipe, options.recipe) == (name, "published")
    (own_configs / "demo.yaml").write_text("recipe: more\n")
    with pytest.raises(InputError, match=r"demo\.yaml: recipe: no such flag"):
        read()


def test_runs_and_checkpoints_of_earlier_versions(one_epoch: Path, tmp_path: Path) -> None:
    made = "charades clip_feat:0123456789ab"
    stored = {**read_json(one_epoch / "opt.json"), "recipe": made}
    for name in ("feature_recipe", "ema", "lr_schedule"):
        del stored[name]
    write_json(tmp_path / "opt.json", stored)
    content = torch.load(one_epoch / "model.ckpt", weights_only=True)
    torch.save({**content, "options": stored}, tmp_path / "model.ckpt")
    for arguments in (["--resume", str(tmp_path)], ["--only_eval", "--eval_ckpt", str(tmp_path / "model.ckpt")]):
        options = read_options(arguments, saved=saved_options)
        assert (options.feature_recipe, options.recipe, options.ema) == (made, "published", 0.0)
