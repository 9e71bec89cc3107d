"""The argument parser of every program, and the types of its flags."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from method.data.provenance import RECIPES
from method.runtime.errors import InputError, shown

# `--resume auto` resumes the run with the same flags, or starts it.
AUTO = "auto"
PUBLISHED = "published"  # the recipe of a training without one
FITTED = "fitted"  # the fusion weight of a training that fits it


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to a flag's help, unless there is none or the help describes it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.nargs == 0 or "(default: " in str(action.help):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are InputErrors and whose flags cannot be abbreviated."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise InputError(f"{message} (--help lists the flags)")

    def replace_help(self, **texts: str) -> None:
        """Give flags another help text, by the name of their value."""
        for action in self._actions:
            action.help = texts.get(action.dest, action.help)

    @property
    def switches(self) -> set[str]:
        """Names of the flags that are `Switch`es."""
        return {action.dest for action in self._actions if isinstance(action, Switch)}

    def _parse_optional(self, arg_string: str) -> Any:
        """Treat a caption id as a value: YouTube ids may begin with dashes, and no flag has a `#`."""
        if "#" in arg_string and "=" not in arg_string.split("#")[0]:
            return None
        return super()._parse_optional(arg_string)


class Switch(argparse.Action):
    """`--x`, `--x true`, `--x false` and `--no_x`: an ablation is one flag appended to a launcher's command line."""

    def __init__(self, option_strings: Sequence[str], dest: str, default: bool, help: str) -> None:
        names = [*option_strings, f"--no_{dest}"]
        super().__init__(names, dest, nargs="?", const="true", default=default, metavar="true|false", help=help)

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Store the value, inverted for `--no_x`."""
        try:
            value = boolean(values)
        except ValueError:
            parser.error(f"argument {option_string}: expected true or false, found {values!r}")
        setattr(namespace, self.dest, value != str(option_string).startswith("--no_"))


def boolean(text: str) -> bool:
    """Parse true/false, yes/no, on/off or 1/0; ValueError for anything else."""
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if str(text).lower() not in words:
        raise ValueError(f"{text!r} is neither true nor false")
    return words[str(text).lower()]


def fusion_weight(text: str) -> float | str:
    """The `type` of --fusion_weight: a number, or `FITTED`. ArgumentTypeError for anything else."""
    try:
        return text if text == FITTED else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number or {FITTED}, found {shown(text)}") from None


def user_path(text: str) -> Path:
    """The `type` of every flag that takes a path; the result may be relative, `~` is expanded.

    ArgumentTypeError, which argparse prefixes with the flag, for an empty path (an unset shell variable), a path that
    no file system accepts, and the home folder of an unknown user.
    """
    try:
        if not text.strip() or b"\0" in os.fsencode(text):
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a path, found {shown(text)}") from None
    try:
        return Path(text).expanduser()
    except RuntimeError:
        home = text.split("/")[0]
        raise argparse.ArgumentTypeError(
            f"{text}: no home folder is known for {home}; for a folder of that name write ./{home}"
        ) from None


def cache_folder(text: str) -> Path | str:
    """Parse a folder or 'off', which YAML reads as false."""
    return "off" if text.lower() in ("off", "false", "no") else user_path(text)


def training_recipe(text: str) -> Path | str:
    """Parse the name of a recipe, or the path of a YAML file. ArgumentTypeError for a recipe of features."""
    if text in RECIPES:
        raise argparse.ArgumentTypeError(f"{text} is how features are made, expected --feature_recipe {text}")
    return user_path(text) if not text.strip() or "/" in text or text.endswith((".yaml", ".yml")) else text


def run_to_resume(text: str) -> Path | str:
    """Parse a folder or 'auto'."""
    return AUTO if text == AUTO else user_path(text)
