"""Current names of weights that were saved from inside of a wrapper, or by an earlier version."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from method.model.published import is_published
from method.runtime.errors import InputError

# What DataParallel and DistributedDataParallel, torch.compile, FSDP and activation checkpointing put into the names of
# the weights below them. No module of the models here has such a name.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Parts of names that have changed since a checkpoint may have been written.
_RENAMED = {"words": "tokens", "asking_positions": "query_positions", "answering_positions": "context_positions"}
_OWN = ("branches.", "fusions.", "temperatures.")


def current_names(weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The same weights without the names of wrappers, wherever in a name these stand, and without former names.

    Args:
        weights: name -> weight, of ours or published.
        source: name of the file, for errors.

    Raises:
        InputError: two weights have one name then, or all names begin with something else that does not belong there.
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
    """What all names begin with before those of a model begin; "" when there is nothing of the kind."""
    parts = next(iter(weights), "").split(".")
    for end in range(1, len(parts)):
        prefix = ".".join(parts[:end]) + "."
        if not all(name.startswith(prefix) for name in weights):
            return ""
        rest = {name.removeprefix(prefix): weight for name, weight in weights.items()}
        if is_published(rest) or all(name.startswith(_OWN) for name in rest):
            return prefix
    return ""
