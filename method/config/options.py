"""Options: a flag, else the earlier run's value, the recipe's, the dataset's YAML file's or its base's, the default.

`read_options` returns a checked EasyDict with a value for every flag of `method/config/flags.py` and absolute paths.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from easydict import EasyDict

from method.config import yaml_values
from method.config.checks import check_branch_options, check_options
from method.config.flags import IGNORED, PER_CALL_FLAGS, make_parser
from method.config.own_dataset import own_yaml
from method.config.parser import PUBLISHED, Parser
from method.config.recipes import read_recipe
from method.data.dataset_files import DATA_FILES
from method.runtime.errors import InputError
from method.runtime.hub.models import find_model

log = logging.getLogger(__name__)

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
VOCABULARY_FILES = ("id_action_dict", "total_action_dict", "id_object_dict", "total_object_dict")
# May be missing, or null, where a YAML file names them, but not on the command line.
_OPTIONAL_FILES = ("moments", "multi_gt", *VOCABULARY_FILES)
_OF_A_DATASET = ["config", "moments", "multi_gt", "multi_gt_subset", "zero_shot_text", *DATA_FILES, *VOCABULARY_FILES]


def read_options(
    arguments: Sequence[str] | None,
    description: str = "Train or evaluate A3PRVR.",
    *,
    listed: Collection[str] | None = None,
    extra: Callable[[Parser], None] | None = None,
    saved: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> EasyDict:
    """Read the command line into checked options.

    Args:
        arguments: the command line without the program's name; None reads sys.argv.
        description: of the program, for --help.
        listed: groups and flags that --help lists, see `make_parser`; None for all.
        extra: adds a command's own flags to the parser.
        saved: returns the options of the earlier run that the given flags point to; they win over the YAML file.

    Raises:
        InputError: naming the flag, the value and what was expected.
    """
    parser = make_parser(description, listed)
    if extra is not None:
        extra(parser)
    actions = _actions(parser)
    defaults = {name: action.default for name, action in actions.items()}
    given = given_flags(parser, arguments)
    root = given.get("root_path", Path()).absolute()
    if saved is not None and given.get("eval_ckpt"):
        given["eval_ckpt"] = find_model(given["eval_ckpt"], root)
    given |= _from_root(given, root)
    for flag in _OPTIONAL_FILES:
        if given.get(flag) and not given[flag].exists():
            raise InputError(f"--{flag} {given[flag]}: no such file")
    if "recipe" in given and (given.get("eval_ckpt") or given.get("zero_shot")):
        log.info("--recipe %s: of a training, has no effect here", given["recipe"])
        del given["recipe"]
    earlier = saved(given) if saved is not None else {}
    # An earlier run has stored what its recipe was.
    recipe = {} if earlier else read_recipe(given.get("recipe", PUBLISHED), parser, CONFIGS / "recipes")
    source = given.get("resume") or given.get("eval_ckpt") or given.get("source") or "options of the earlier run"
    earlier = {
        name: None
        if value is None and actions[name].default is None
        else yaml_values.typed(actions[name], value, source)
        for name, value in earlier.items()
        if name in actions and name not in (*PER_CALL_FLAGS, *IGNORED)
    }
    name, path = _find_dataset(given, earlier)
    if "config" in given or name != earlier.get("dataset_name", name):  # another dataset than that of the earlier run
        earlier = {name: value for name, value in earlier.items() if name not in _OF_A_DATASET}
    from_yaml = {} if path is None else read_yaml(path, parser)
    options = EasyDict({**defaults, **from_yaml, **recipe, **earlier, **given, "dataset_name": name})
    for flag in IGNORED:
        if flag in given:
            log.info("--%s is accepted and ignored, as in the published code", flag)
    check_options(options)
    check_branch_options(options, _source_of("branches", given, earlier, source, from_yaml, path))
    options.root_path = _root(options.root_path, "root_path" in given)
    options.update(_from_root(options, options.root_path))
    return options


def _source_of(
    name: str,
    given: Mapping[str, Any],
    earlier: Mapping[str, Any],
    run: Path | str,
    from_yaml: Mapping[str, Any],
    yaml_path: Path | None,
) -> Path | str:
    """Where the value of an option is from, for messages."""
    if name in given:
        return f"--{name}"
    if name in earlier:
        return run
    return yaml_path if yaml_path and name in from_yaml else f"--{name}"


def _find_dataset(given: Mapping[str, Any], earlier: Mapping[str, Any]) -> tuple[str, Path | None]:
    """The dataset's name and its YAML file; None when the options of an earlier run have to do."""
    if config := given.get("config"):
        return given.get("dataset_name", config.stem), config
    name = given.get("dataset_name", earlier.get("dataset_name"))
    if name is None:
        raise InputError(f"--dataset_name is missing, expected one of {', '.join(known_datasets())}, or --config FILE")
    path = shipped = CONFIGS / f"{name}.yaml"
    if name not in known_datasets():
        path = own_yaml(_root(given.get("root_path", earlier.get("root_path", Path())), given=False), name)
    # An earlier run has stored every value, and its file may be gone.
    if name == earlier.get("dataset_name") and (earlier.get("config") or not path.exists()):
        return name, None
    if not path.exists():
        expected = f"expected one of {', '.join(known_datasets())}, or --config FILE"
        raise InputError(f"--dataset_name {name}: neither {shipped} nor {path}, {expected}")
    return name, path


def known_datasets() -> list[str]:
    """Names of the files in configs/."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != yaml_values.BASE)


def read_yaml(path: Path, parser: Parser) -> dict[str, Any]:
    """Read a dataset's options, on top of those of the file that `base` names: beside this one, or else in configs/.

    InputError for a file that is missing or not YAML, and for keys that are no flags.
    """
    excluded = [*PER_CALL_FLAGS, "dataset_name", "config", "recipe", "root_path"]
    flags = {name: action for name, action in _actions(parser).items() if name not in excluded}
    return yaml_values.read_yaml(path, flags, CONFIGS, optional=_OPTIONAL_FILES)


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as JSON files and checkpoints store them: paths as strings, relative to the root if below it."""
    root = options["root_path"]

    def text(name: str, value: Any) -> Any:
        if isinstance(value, Mapping):  # an EasyDict is no plain value
            return {key: text("", item) for key, item in value.items()}
        if not isinstance(value, Path):
            return value
        return str(value.relative_to(root) if name != "root_path" and value.is_relative_to(root) else value)

    return {name: text(name, value) for name, value in options.items()}


def given_flags(parser: Parser, arguments: Sequence[str] | None) -> dict[str, Any]:
    """The flags of a command line by name, without those that were not given."""
    missing = object()
    namespace = parser.parse_args(arguments, _prefilled(parser, missing))
    return {name: value for name, value in vars(namespace).items() if value is not missing}


def _prefilled(parser: Parser, value: object) -> Any:
    # argparse keeps attributes that exist already: those that still hold `value` were not on the command line.
    namespace = argparse.Namespace()
    for name in _actions(parser):
        setattr(namespace, name, value)
    return namespace


def _actions(parser: Parser) -> dict[str, argparse.Action]:
    return {action.dest: action for action in parser._actions if action.dest != "help"}


def _from_root(options: Mapping[str, Any], root: Path) -> dict[str, Path]:
    """The options that are paths, made absolute; without the root itself."""
    return {
        name: (root / value).absolute()
        for name, value in options.items()
        if isinstance(value, Path) and name != "root_path"
    }


def _root(root: Path, given: bool) -> Path:
    """The root folder; that of an earlier run may not exist on this machine, which leaves the working directory."""
    path = root.absolute()
    if given and not path.is_dir():
        raise InputError(f"--root_path {root}: no such folder")
    return path if path.is_dir() else Path.cwd()
