"""Approximate the text encoder of TVR's token features by fine-tuning roberta-base on the training captions.

    python utils/download_roberta.py --model FacebookAI/roberta-base
    python utils/tune_text_encoder.py tvr

Trains one epoch of masked language modelling and saves the encoder where configs/tvr.yaml expects it. TVR's own encoder
was fine-tuned in this way, but its weights were never released. The features of this approximation are close to the
stored ones, not equal; `utils/check_dataset.py tvr` reports how close.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import method  # noqa: F401 (sets OpenMP variables before torch is imported)

import torch
from torch import Tensor

from method.config.options import read_options
from method.config.parser import Parser, user_path
from method.data.captions import read_captions
from method.data.dataset_files import check_files
from method.ops.precision import enable_fast_matmul
from method.runtime.errors import InputError, run_command
from method.runtime.files import atomic_folder
from method.runtime.hardware import choose_device
from method.runtime.hub_environment import check_timeouts
from method.runtime.pretrained import load_errors, quiet_transformers
from method.runtime.progress import progress_bar
from method.runtime.run_folder import log_to_terminal
from method.text.encoder_files import count_positions, require_parts

log = logging.getLogger(__name__)

MASKED = 0.15  # share of masked tokens, as in RoBERTa
_MAX_NORM = 1.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Fine-tune the encoder and save it."""
    log_to_terminal()
    given = _read_arguments(arguments)
    dataset = ["--dataset_name", given.dataset] if given.dataset else []
    config = ["--config", str(given.config)] if given.config else []
    options = read_options([*dataset, *config, "--root_path", str(given.root_path)])
    device = choose_device(given.device)
    enable_fast_matmul(device)
    root = options.root_path
    base = root / given.base_encoder
    out = root / (given.out or f"checkpoints/roberta-base-{options.dataset_name}")
    if out.exists():
        raise InputError(f"{out}: already exists; move it away, or choose another folder with --out")
    check_files({"caption_train_txt": options.caption_train_txt}, options.dataset_name, root)
    sentences = [caption.text for caption in read_captions(options.caption_train_txt)]
    torch.manual_seed(given.seed)
    tokenizer, model = load_masked_lm(base, options.q_feat_size)
    losses = tune(model.to(device), tokenizer, sentences, given)
    if not all(weight.isfinite().all() for weight in model.parameters()):
        raise InputError(f"--lr {given.lr}: the weights became NaN or infinite and are not saved")
    with atomic_folder(out) as folder, quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    tenth = max(1, len(losses) // 10)
    first, last = (sum(part) / tenth for part in (losses[:tenth], losses[-tenth:]))
    print(f"{out}: done, {len(sentences)} captions, masked-word loss from {first:.2f} to {last:.2f}")
    if options.dataset_name == "tvr":
        print("This is an approximation: the encoder of TVR's token features was never released.")


def load_masked_lm(folder: Path, width: int) -> tuple[Any, Any]:
    """Load the tokenizer and the masked language model in a folder; a missing head is randomly initialised.

    InputError for a folder that is missing, corrupt or incomplete, or has another hidden size.
    """
    remedy = "run `python utils/download_roberta.py --model FacebookAI/roberta-base`, or set --base_encoder"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder, expected roberta-base; {remedy}")
    require_parts(folder)
    check_timeouts()  # a wrong one makes the import fail
    # Imported here because it takes seconds, and most errors are found without it.
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    safely: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with load_errors(folder, remedy), quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(folder, **safely)
        loaded = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True, weights_only=True, **safely)
    model, report = loaded
    encoder, missing = f"{model.base_model_prefix}.", sorted(report["missing_keys"])
    if of_encoder := [key for key in missing if key.startswith(encoder)]:
        raise InputError(f"{folder}: {len(of_encoder)} weights missing, such as {of_encoder[0]}; {remedy}")
    if missing:
        log.warning("%s: no language modelling head (%s); it is trained from scratch", folder, missing[0])
    if model.config.hidden_size != width:
        raise InputError(
            f"{folder}: hidden size {model.config.hidden_size}, expected {width}, the width of the token features"
        )
    if tokenizer.mask_token is None:
        raise InputError(f"{folder}: a tokenizer without a mask token, expected a masked language model; {remedy}")
    return tokenizer, model


def tune(model: Any, tokenizer: Any, sentences: Sequence[str], settings: argparse.Namespace) -> list[float]:
    """Train by masked language modelling with linear learning rate decay to 0.

    Args:
        model: the masked language model, on the training device.
        tokenizer: its tokenizer.
        sentences: one training example per sentence.
        settings: epochs, bsz (sentences per step) and lr.

    Returns:
        The loss of each step.
    """
    steps = settings.epochs * -(-len(sentences) // settings.bsz)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model.train()
    losses: list[Tensor] = []
    log.info("fine-tuning on %d captions in %d steps on %s", len(sentences), steps, model.device)
    batches = _batches(model, tokenizer, sentences, settings)
    for batch in progress_bar(batches, "fine-tuning", "step", total=steps):
        if not (batch["labels"] >= 0).any():  # no token was masked, which happens in small batches
            continue
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _MAX_NORM)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    if not losses:
        raise InputError(f"{len(sentences)} captions: too few to mask any token, expected the captions of a dataset")
    return torch.stack(losses).tolist()


def _batches(model: Any, tokenizer: Any, sentences: Sequence[str], settings: argparse.Namespace) -> Iterator[Any]:
    """Masked batches of all sentences, reshuffled every epoch."""
    from transformers import DataCollatorForLanguageModeling

    longest = min(count_positions(model), tokenizer.model_max_length)
    tokens = tokenizer(list(sentences), truncation=True, max_length=longest, return_special_tokens_mask=True)
    masked = DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKED)
    names = ("input_ids", "attention_mask", "special_tokens_mask")
    for _ in range(settings.epochs):
        for numbers in torch.randperm(len(sentences)).split(settings.bsz):
            batch = [{name: tokens[name][number] for name in names} for number in numbers.tolist()]
            yield masked(batch).to(model.device)


def _read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description="Fine-tune roberta-base on the training captions of a dataset.")
    add = parser.add_argument
    add("dataset", nargs="?", help="name of a YAML file in configs/, such as tvr (default: that of --config)")
    add("--config", type=user_path, metavar="FILE", help="YAML file of a dataset outside configs/")
    add("--root_path", type=user_path, default=Path(), help="base folder of relative paths")
    default = Path("checkpoints/roberta-base")
    add("--base_encoder", type=user_path, default=default, help="folder of the initial encoder")
    add("--out", type=user_path, help="folder of the fine-tuned encoder (default: checkpoints/roberta-base-<dataset>)")
    add("--epochs", type=int, default=1, help="number of epochs")
    add("--bsz", type=int, default=32, help="captions per step")
    add("--lr", type=float, default=5e-5, help="initial learning rate, with linear decay to 0")
    add("--seed", type=int, default=2026, help="random seed of order, masks and dropout")
    add("--device", type=int, help="GPU index, -1 for the CPU (default: the first GPU, or the CPU if there is none)")
    given = parser.parse_args(arguments)
    for flag in ("epochs", "bsz"):
        if getattr(given, flag) < 1:
            raise InputError(f"--{flag} {getattr(given, flag)}: expected at least 1")
    if not 0 < given.lr < 1:
        raise InputError(f"--lr {given.lr}: expected a number above 0 and below 1")
    if given.seed < 0:
        raise InputError(f"--seed {given.seed}: expected at least 0")
    return given


if __name__ == "__main__":
    run_command(main)
