"""Options: a flag, else the earlier run's value, else the dataset's YAML file or its base, else the default.

`read_options` returns a checked EasyDict with a value for every flag of `method/config/flags.py` and absolute paths.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from easydict import EasyDict

from method.config.branches import (
    UniqueKeyLoader,
    branch_table,
    check_branch_options,
    make_branches,
    negative_branches,
)
from method.config.checks import check_options
from method.config.flags import IGNORED, Parser, boolean, make_parser
from method.config.own_dataset import own_yaml
from method.data.dataset_files import DATA_FILES
from method.model.architecture import Architecture, Fusion
from method.model.losses import NEGATIVE_QUERIES
from method.runtime.errors import InputError, shown
from method.runtime.files import read_text
from method.runtime.hub.models import find_model

log = logging.getLogger(__name__)

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
_BASE = "base"  # key of a YAML file, and the name of the file in configs/ that is no dataset
VOCABULARY_FILES = ("id_action_dict", "total_action_dict", "id_object_dict", "total_object_dict")
# May be missing, or null, where a YAML file names them, but not on the command line.
_OPTIONAL_FILES = ("moments", "multi_gt", *VOCABULARY_FILES)
# Flags of a single call: never read from a YAML file or an earlier run.
PER_CALL_FLAGS = [
    "description",
    "only_eval",
    "eval_ckpt",
    "resume",
    "debug",
    "device",
    "device_ids",
    "save_scores",
    "report",
    "quiet",
]
_OF_A_DATASET = ["config", "moments", "multi_gt", "multi_gt_subset", *DATA_FILES, *VOCABULARY_FILES]


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
    given = _parse_given(parser, arguments)
    root = given.get("root_path", Path()).absolute()
    if saved is not None and given.get("eval_ckpt"):
        given["eval_ckpt"] = find_model(given["eval_ckpt"], root)
    given |= _from_root(given, root)
    for flag in _OPTIONAL_FILES:
        if given.get(flag) and not given[flag].exists():
            raise InputError(f"--{flag} {given[flag]}: no such file")
    earlier = saved(given) if saved is not None else {}
    source = given.get("resume") or given.get("eval_ckpt") or given.get("source") or "options of the earlier run"
    earlier = {
        name: None if value is None and actions[name].default is None else _typed(actions[name], value, source)
        for name, value in earlier.items()
        if name in actions and name not in (*PER_CALL_FLAGS, *IGNORED)
    }
    name, path = _find_dataset(given, earlier)
    if "config" in given or name != earlier.get("dataset_name", name):  # another dataset than that of the earlier run
        earlier = {name: value for name, value in earlier.items() if name not in _OF_A_DATASET}
    from_yaml = {} if path is None else read_yaml(path, parser)
    options = EasyDict({**defaults, **from_yaml, **earlier, **given, "dataset_name": name})
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
    return sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != _BASE)


def read_yaml(path: Path, parser: Parser) -> dict[str, Any]:
    """Read a dataset's options, on top of those of the file that `base` names: beside this one, or else in configs/.

    InputError for a file that is missing or not YAML, and for keys that are no flags.
    """
    values = _load_yaml(path)
    base = values.pop(_BASE, None)
    if base is None:
        return _typed_yaml(path, values, parser)
    if not isinstance(base, str):
        raise InputError(f"{path}: {_BASE}: expected the name of a YAML file, found {shown(base)}")
    beside, shared = path.parent / base, CONFIGS / base
    base_path = shared if shared.exists() and not beside.exists() else beside
    return {**_typed_yaml(base_path, _load_yaml(base_path), parser), **_typed_yaml(path, values, parser)}


def _load_yaml(path: Path) -> dict[Any, Any]:
    text = read_text(path)
    try:
        values = yaml.load(text, UniqueKeyLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected 'flag: value' lines, found {type(values).__name__}")
    return values


def _typed_yaml(path: Path, values: Mapping[Any, Any], parser: Parser) -> dict[str, Any]:
    excluded = [*PER_CALL_FLAGS, "dataset_name", "config", "root_path"]
    actions = {name: action for name, action in _actions(parser).items() if name not in excluded}
    unknown = [str(key) for key in values if key not in actions]
    if unknown:
        raise InputError(f"{path}: {', '.join(unknown)}: no such flag")
    return {
        key: None if value is None and key in _OPTIONAL_FILES else _typed(actions[key], value, path)
        for key, value in values.items()
    }


def make_architecture(options: Mapping[str, Any]) -> Architecture:
    """The architecture that the options describe."""
    fusion: Fusion = "none"
    if options["cross_branch_fusion"]:
        fusion = "deformable" if options["deformable_attn"] else "attention"
    return Architecture(
        branches=make_branches(options),
        query_width=options["q_feat_size"],
        hidden_size=options["hidden_size"],
        heads=options["n_heads"],
        max_frames=options["max_ctx_l"],
        max_words=options["max_desc_l"],
        input_dropout=options["input_drop"],
        dropout=options["drop"],
        initializer_range=options["initializer_range"],
        fusion=fusion,
        fusion_extent=options["fusion_extent"] or "valid",
        fusion_positions=options["fusion_positions"] and fusion == "deformable",
        fusion_heads=options["deformable_heads"] if fusion == "deformable" else options["cross_attn_head"],
        offset_groups=options["deformable_offset_groups"],
        offset_count=options["deformable_offset_num"],
        offset_kernel=options["deformable_offset_kernel_size"],
        temperatures=negative_branches(options),
        head=options["head"],
    )


def loss_weights(options: Mapping[str, Any]) -> dict[str, float]:
    """The loss terms that are trained with, and the weight of each."""
    weights = {name: options[f"{name}_weight"] for name in options["losses"].split(",")}
    if options["neg_query_loss"] is not None:
        weights[NEGATIVE_QUERIES] = options["neg_query_loss_weight"]
    return weights


def choose_device(
    device: int | None, device_ids: Sequence[int] | None = None, local_rank: int | None = None
) -> torch.device:
    """The device that --device or --device_ids selects; under torchrun, the GPU of the process with this local rank.

    InputError when the machine has no such GPU, or when a flag selects a device under torchrun.
    """
    gpus = torch.cuda.device_count()
    if local_rank is not None:
        for flag, value in (("device", device), ("device_ids", device_ids)):
            if value is not None:
                raise InputError(
                    f"--{flag} {value}: torchrun gives each process its own GPU, or the CPU where there is none; "
                    "CUDA_VISIBLE_DEVICES chooses among the GPUs"
                )
        return torch.device("cuda", local_rank) if gpus else torch.device("cpu")
    if device is None:
        device = (device_ids or [0])[0] if gpus else -1
    if device < 0:
        return torch.device("cpu")
    if device >= gpus:
        raise InputError(f"--device {device}: this machine has {gpus} usable GPUs; -1 is the CPU")
    return torch.device("cuda", device)


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


def _parse_given(parser: Parser, arguments: Sequence[str] | None) -> dict[str, Any]:
    missing = object()
    namespace = parser.parse_args(arguments, _prefilled(parser, missing))
    return {name: value for name, value in vars(namespace).items() if value is not missing}


def _prefilled(parser: Parser, value: object) -> Any:
    # argparse keeps attributes that exist already: those that still hold `value` were not on the command line.
    namespace = argparse.Namespace()
    for name in _actions(parser):
        setattr(namespace, name, value)
    return namespace


def _actions(parser: Parser) -> dict[str, Any]:
    return {action.dest: action for action in parser._actions if action.dest != "help"}


def _typed(action: Any, value: Any, source: Path | str) -> Any:
    """A value of a YAML file or of an earlier run, parsed as the flag parses it."""
    if action.type is branch_table:
        return branch_table(value, source)
    if not isinstance(value, bool | int | float | str):
        raise InputError(f"{source}: {action.dest}: expected one value, found {shown(value)}")
    try:
        if isinstance(action.default, bool):
            return boolean(str(value))
        typed = _text(str(value)) if action.type is None else action.type(str(value))
    except argparse.ArgumentTypeError as error:
        raise InputError(f"{source}: {action.dest}: {error}") from None
    except ValueError:
        kind = f"a value of type {(action.type or str).__name__}"
        if isinstance(action.default, bool):
            kind = "true or false"
        raise InputError(f"{source}: {action.dest}: expected {kind}, found {shown(value)}") from None
    if action.choices is not None and typed not in action.choices:
        raise InputError(f"{source}: {action.dest}: expected one of {', '.join(action.choices)}, found {shown(value)}")
    return typed


def _text(text: str) -> str:
    """Text that can name a file; ValueError for what no file system accepts."""
    if b"\0" in os.fsencode(text):
        raise ValueError(text)
    return text


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
