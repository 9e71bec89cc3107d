"""Folders of pretrained models as transformers saves them: one-line errors, no output, and a tower of a CLIP model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from method.runtime.errors import InputError, summarize
from method.runtime.files import digest_of, require_file, sha256
from method.runtime.hub_environment import check_timeouts

CLIP_FOLDER = Path("checkpoints/clip-vit-base-patch32")  # below the root, by default
CLIP_REMEDY = "run `python utils/download_encoders.py clip`, or set --clip_encoder"

# The tower of a kind of input: prefix of its configuration and model, and the projection behind it.
_TOWERS = {"vision": "visual_projection", "text": "text_projection"}


@contextlib.contextmanager
def load_errors(folder: Path, remedy: str, kind: str = "a text encoder") -> Iterator[None]:
    """Turn any exception of the libraries that read the folder into InputError."""
    try:
        yield
    except Exception as error:
        message = str(error).strip().split("\n", 1)[0][:200]
        reason = f"{type(error).__name__}: {message}"
        raise InputError(f"{folder}: cannot be loaded as {kind} ({reason}); {remedy}") from error


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence progress bars and reports of transformers; missing weights are checked by those who load."""
    from transformers.utils import logging

    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()


def load_clip_tower(folder: Path, tower: Literal["vision", "text"]) -> tuple[nn.Module, Any]:
    """One tower of a CLIP model with its projection, in fp32, and its configuration.

    Only the weights of this tower are read, from safetensors files, and no code.

    InputError for a folder that is missing, corrupt, incomplete or not of a CLIP model.
    """
    paths = clip_files(folder)
    check_timeouts()  # an invalid value makes the import fail
    # Imported here because it takes seconds.
    from safetensors import safe_open
    from transformers import AutoConfig, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

    with load_errors(folder, CLIP_REMEDY, "a CLIP model"), quiet_transformers():
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if config.model_type != "clip":
            raise InputError(f"a {config.model_type} model")
        part = getattr(config, f"{tower}_config")
        part.projection_dim = config.projection_dim
        state: dict[str, Tensor] = {}
        for path in paths:
            with safe_open(path, "pt") as file:
                names = [name for name in file.keys() if name.startswith((f"{tower}_model.", _TOWERS[tower]))]  # noqa: SIM118
                state |= {name: file.get_tensor(name).float() for name in names if not name.endswith(".position_ids")}
        kind: Any = CLIPVisionModelWithProjection if tower == "vision" else CLIPTextModelWithProjection
        model, report = kind.from_pretrained(None, config=part, state_dict=state, output_loading_info=True)
        if wrong := sorted({*report["missing_keys"], *report["unexpected_keys"]}):
            raise InputError(f"missing or unknown weights: {summarize(wrong, 3)}")
        if not all(value.isfinite().all() for value in state.values()):
            raise InputError("weights that are not finite")
    return model.eval().requires_grad_(False), part


def clip_files(folder: Path) -> list[Path]:
    """The weight files of a CLIP model. InputError if the folder, its configuration or its weights are missing."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder, expected a CLIP model; {CLIP_REMEDY}")
    paths = sorted(folder.glob("*.safetensors"))
    missing = [] if (folder / "config.json").exists() else ["config.json"]
    missing += [] if paths else ["model.safetensors"]
    if missing:
        raise InputError(f"{folder}: no {', no '.join(missing)}, expected a CLIP model; {CLIP_REMEDY}")
    try:
        for path in [folder / "config.json", *paths]:
            require_file(path)
    except InputError as error:
        raise InputError(f"{error}; {CLIP_REMEDY}") from error
    return paths


def clip_digest(folder: Path) -> str:
    """SHA-256 of the weights of a CLIP model; of a model in several files, of their digests in order."""
    found = [sha256(path) for path in clip_files(folder)]
    return found[0] if len(found) == 1 else digest_of(found)
