"""Current names of weights that were saved from a wrapped model or by an earlier version."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from method.model.published import is_published
from method.runtime.errors import InputError

# Name parts added by DataParallel and DistributedDataParallel, torch.compile, FSDP and activation checkpointing. No
# module of the model has such a name.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Name parts that earlier versions used.
_RENAMED = {"words": "tokens", "asking_positions": "query_positions", "answering_positions": "context_positions"}
_OWN = ("branches.", "fusions.", "temperatures.", "query_weights.")


def current_names(weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Remove the names of wrappers, anywhere in a name, and replace former names.

    Args:
        weights: name -> weight, with current, former or published names.
        source: name of the file, for errors.

    Raises:
        InputError: for two weights that get the same name, and for an unknown prefix of all names.
    """
    unwrapped: dict[str, Tensor] = {}
    for name, weight in weights.items():
        short = ".".join(_RENAMED.get(part, part) for part in name.split(".") if part not in _WRAPPERS)
        if short in unwrapped:
            raise InputError(f"{source}: holds the weight {short} twice, once as {name}")
        unwrapped[short] = weight
    if prefix := _shared_prefix(unwrapped):
        raise InputError(
            f"{source}: the names of all {len(unwrapped)} weights begin with {prefix!r}, expected names without it: "
            "save the state_dict() of the model itself"
        )
    return unwrapped


def _shared_prefix(weights: Mapping[str, Tensor]) -> str:
    """The prefix of all names that precedes those of a model, or ""."""
    parts = next(iter(weights), "").split(".")
    for end in range(1, len(parts)):
        prefix = ".".join(parts[:end]) + "."
        if not all(name.startswith(prefix) for name in weights):
            return ""
        rest = {name.removeprefix(prefix): weight for name, weight in weights.items()}
        if is_published(rest) or all(name.startswith(_OWN) for name in rest):
            return prefix
    return ""
