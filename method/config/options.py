"""Options: a flag's value, else that of the dataset's YAML file or its base, else the default; checked in one place.

The rest of the program sees one EasyDict with a value for every flag of `method/config/flags.py`, paths made absolute.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Mapping, Sequence
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
from method.model.architecture import Architecture, Fusion
from method.model.losses import NEGATIVE_QUERIES
from method.runtime.errors import InputError, shown
from method.runtime.files import read_text

log = logging.getLogger(__name__)

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
_BASE = "base"  # key of a YAML file, and the name of the file in configs/ that is no dataset
VOCABULARY_FILES = ("id_action_dict", "total_action_dict", "id_object_dict", "total_object_dict")
# Flags that belong to one call and never come from a YAML file or an earlier run.
OF_THE_CALL = (
    *(
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
    ),
)


def read_options(
    arguments: Sequence[str] | None,
    description: str = "Train or evaluate A3PRVR.",
    extra: Callable[[Parser], None] | None = None,
    kept: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> EasyDict:
    """Read the command line into checked options.

    Args:
        arguments: the words after the program's name; None reads sys.argv.
        description: what --help says of the program.
        extra: adds the flags of one command to the parser.
        kept: gives the options of an earlier run that the given flags point to; they come before the YAML file's.

    Raises:
        InputError: naming the flag, the value and what was expected.
    """
    parser = make_parser(description)
    if extra is not None:
        extra(parser)
    actions = _actions(parser)
    defaults = {name: action.default for name, action in actions.items()}
    given = _parse_given(parser, arguments)
    given |= _from_root(given, given.get("root_path", Path()).absolute())
    moments = given.get("moments")
    if moments and not moments.exists():  # only a file that the YAML names may be absent
        raise InputError(f"--moments {moments}: no such file")
    earlier = kept(given) if kept is not None else {}
    source = given.get("resume") or given.get("eval_ckpt") or given.get("source") or "options of the earlier run"
    earlier = {
        name: None if value is None and actions[name].default is None else _typed(actions[name], value, source)
        for name, value in earlier.items()
        if name in actions and name not in (*OF_THE_CALL, *IGNORED)
    }
    name = given.get("dataset_name", earlier.get("dataset_name"))
    if name is None:
        raise InputError(f"--dataset_name is missing, expected one of {', '.join(known_datasets())}")
    from_yaml = read_yaml(CONFIGS / f"{name}.yaml", parser)
    options = EasyDict({**defaults, **from_yaml, **earlier, **given})
    for flag in IGNORED:
        if flag in given:
            log.info("--%s is accepted and ignored: it never did anything", flag)
    check_options(options)
    check_branch_options(options, _source_of("branches", given, earlier, source, from_yaml, CONFIGS / f"{name}.yaml"))
    options.root_path = _root(options.root_path, "root_path" in given)
    options.update(_from_root(options, options.root_path))
    return options


def _source_of(
    name: str,
    given: Mapping[str, Any],
    earlier: Mapping[str, Any],
    run: Path | str,
    from_yaml: Mapping[str, Any],
    yaml_path: Path,
) -> Path | str:
    """Where the value of an option is from, for messages."""
    if name in given:
        return f"--{name}"
    if name in earlier:
        return run
    return yaml_path if name in from_yaml else f"--{name}"


def known_datasets() -> list[str]:
    """Names of the files in configs/."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != _BASE)


def read_yaml(path: Path, parser: Parser) -> dict[str, Any]:
    """Read one dataset's options, over those of the file that `base` names.

    InputError for a file that is missing or not YAML, and for keys that are no flags.
    """
    if not path.exists() or path.stem == _BASE:
        raise InputError(f"--dataset_name {path.stem}: no {path}, expected one of {', '.join(known_datasets())}")
    values = _load_yaml(path)
    base = values.pop(_BASE, None)
    if base is None:
        return _typed_yaml(path, values, parser)
    if not isinstance(base, str):
        raise InputError(f"{path}: {_BASE}: expected the name of a YAML file, found {shown(base)}")
    base_path = path.parent / base
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
    of_the_call = (*OF_THE_CALL, "dataset_name", "root_path")
    actions = {name: action for name, action in _actions(parser).items() if name not in of_the_call}
    unknown = [str(key) for key in values if key not in actions]
    if unknown:
        raise InputError(f"{path}: {', '.join(unknown)}: no such flag")
    return {key: _typed(actions[key], value, path) for key, value in values.items()}


def make_architecture(options: Mapping[str, Any]) -> Architecture:
    """What the model needs of the options."""
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


def choose_device(options: Mapping[str, Any], local_rank: int | None = None) -> torch.device:
    """The device that the options ask for, or that torchrun gives to its process `local_rank` of this machine.

    InputError when the machine has no such GPU, or when torchrun and the options both choose.
    """
    gpus = torch.cuda.device_count()
    wanted = options["device"]
    if local_rank is not None:
        for flag in ("device", "device_ids"):
            if options[flag] is not None:
                raise InputError(f"--{flag} {options[flag]}: torchrun gives each process its own GPU, or the CPU where "
                    "there is none; CUDA_VISIBLE_DEVICES chooses among the GPUs")  # fmt: skip
        return torch.device("cuda", local_rank) if gpus else torch.device("cpu")
    if wanted is None:
        wanted = (options["device_ids"] or [0])[0] if gpus else -1
    if wanted < 0:
        return torch.device("cpu")
    if wanted >= gpus:
        raise InputError(f"--device {wanted}: this machine has {gpus} usable GPUs; -1 is the CPU")
    return torch.device("cuda", wanted)


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as JSON and checkpoints keep them: paths as text, those below the root relative to it."""
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
    # argparse leaves attributes that are already there alone, so what still holds `value` was not on the command line.
    namespace = argparse.Namespace()
    for name in _actions(parser):
        setattr(namespace, name, value)
    return namespace


def _actions(parser: Parser) -> dict[str, Any]:
    return {action.dest: action for action in parser._actions if action.dest != "help"}


def _typed(action: Any, value: Any, source: Path | str) -> Any:
    """A value of a YAML file or of an earlier run as the flag would have read it."""
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
    """Text that can name a file; ValueError for what no file system takes."""
    if b"\0" in os.fsencode(text):
        raise ValueError(text)
    return text


def _from_root(options: Mapping[str, Any], root: Path) -> dict[str, Path]:
    """Every path among the options made absolute, except the root itself."""
    return {
        name: (root / value).absolute()
        for name, value in options.items()
        if isinstance(value, Path) and name != "root_path"
    }


def _root(root: Path, given: bool) -> Path:
    """The root folder; one that an earlier run remembers may not exist on this machine."""
    path = root.absolute()
    if given and not path.is_dir():
        raise InputError(f"--root_path {root}: no such folder")
    return path if path.is_dir() else Path.cwd()
