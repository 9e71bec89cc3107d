"""Make a text encoder like the one of TVR's token features: tune roberta-base on the captions of the training file.

    python utils/download_roberta.py --model FacebookAI/roberta-base
    python utils/tune_text_encoder.py tvr

It learns to predict masked words for one epoch and is written to where configs/tvr.yaml looks for it. TVR's own encoder
was tuned in this way, but its weights were never released: this is an approximation, and its features of a caption are
near the stored ones, not equal to them. `utils/check_dataset.py tvr` says how near.
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

from method.config.flags import Parser, user_path
from method.config.options import choose_device, read_options
from method.data.captions import read_captions
from method.data.dataset_files import check_files
from method.ops.precision import enable_fast_matmul
from method.runtime.errors import InputError, run_command
from method.runtime.files import atomic_folder
from method.runtime.progress import progress_bar
from method.runtime.run_folder import log_to_terminal
from method.text.encoder_files import count_positions, load_errors, quiet_transformers, require_parts

log = logging.getLogger(__name__)

MASKED = 0.15  # share of the tokens that are to be predicted, as RoBERTa was trained
_MAX_NORM = 1.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Tune the encoder that the command line names and write it."""
    log_to_terminal()
    asked = _read_arguments(arguments)
    dataset = ["--dataset_name", asked.dataset] if asked.dataset else []
    config = ["--config", str(asked.config)] if asked.config else []
    options = read_options([*dataset, *config, "--root_path", str(asked.root_path)])
    device = choose_device(asked.device)
    enable_fast_matmul(device)
    root = options.root_path
    base = root / asked.base_encoder
    out = root / (asked.out or f"checkpoints/roberta-base-{options.dataset_name}")
    if out.exists():
        raise InputError(f"{out}: exists and is not overwritten; move it away, or choose another folder with --out")
    check_files({"caption_train_txt": options.caption_train_txt}, options.dataset_name, root)
    sentences = [caption.text for caption in read_captions(options.caption_train_txt)]
    torch.manual_seed(asked.seed)
    tokenizer, model = load_masked_lm(base, options.q_feat_size)
    losses = tune(model.to(device), tokenizer, sentences, asked)
    if not all(weight.isfinite().all() for weight in model.parameters()):
        raise InputError(f"--lr {asked.lr}: the weights have become NaN or infinite and are not saved")
    with atomic_folder(out) as folder, quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    tenth = max(1, len(losses) // 10)
    first, last = (sum(part) / tenth for part in (losses[:tenth], losses[-tenth:]))
    print(f"{out}: done, {len(sentences)} captions, loss of masked words {first:.2f} at first, {last:.2f} at last")
    if options.dataset_name == "tvr":
        print("It is an approximation: the weights that made TVR's token features were never released.")


def load_masked_lm(folder: Path, width: int) -> tuple[Any, Any]:
    """Load the tokeniser and the masked language model in a folder; the head is initialised where the folder has none.

    InputError for a folder that is missing, broken, incomplete or of another width.
    """
    remedy = "run `python utils/download_roberta.py --model FacebookAI/roberta-base`, or set --base_encoder"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder, expected roberta-base; {remedy}")
    require_parts(folder)
    # Imported here because it takes seconds, and most mistakes are found without it.
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
        log.warning("%s: no head that predicts masked words (%s); it is learned from scratch", folder, missing[0])
    if model.config.hidden_size != width:
        raise InputError(
            f"{folder}: hidden size {model.config.hidden_size}, expected {width}, the width of the token features"
        )
    if tokenizer.mask_token is None:
        raise InputError(f"{folder}: a tokeniser without a mask token, expected a masked language model; {remedy}")
    return tokenizer, model


def tune(model: Any, tokenizer: Any, sentences: Sequence[str], settings: argparse.Namespace) -> list[float]:
    """Train by masked language modelling; the learning rate falls linearly to 0.

    Args:
        model: on the device to train on.
        tokenizer: its tokeniser.
        sentences: one training example each.
        settings: epochs, bsz (sentences a step) and lr.

    Returns:
        The loss of every step.
    """
    steps = settings.epochs * -(-len(sentences) // settings.bsz)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    model.train()
    losses: list[Tensor] = []
    log.info("tuning on %d captions in %d steps on %s", len(sentences), steps, model.device)
    batches = _batches(model, tokenizer, sentences, settings)
    for batch in progress_bar(batches, "tuning", "step", total=steps):
        if not (batch["labels"] >= 0).any():  # no token was drawn, which happens in small batches
            continue
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _MAX_NORM)
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    if not losses:
        raise InputError(f"{len(sentences)} captions: too few to mask a token of, expected those of a dataset")
    return torch.stack(losses).tolist()


def _batches(model: Any, tokenizer: Any, sentences: Sequence[str], settings: argparse.Namespace) -> Iterator[Any]:
    """Masked batches of all sentences, in a new order every epoch."""
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
    parser = Parser(description="Tune roberta-base on a dataset's training captions by masked language modelling.")
    add = parser.add_argument
    add("dataset", nargs="?", help="name of a YAML file in configs/, such as tvr (default: that of --config)")
    add("--config", type=user_path, metavar="FILE", help="YAML file of a dataset outside configs/")
    add("--root_path", type=user_path, default=Path(), help="folder that relative paths start from")
    default = Path("checkpoints/roberta-base")
    add("--base_encoder", type=user_path, default=default, help="folder of the encoder to start from")
    add("--out", type=user_path, help="new folder of the tuned encoder (default: checkpoints/roberta-base-<dataset>)")
    add("--epochs", type=int, default=1, help="passes over the captions")
    add("--bsz", type=int, default=32, help="batch size in captions")
    add("--lr", type=float, default=5e-5, help="initial learning rate, decayed linearly to 0")
    add("--seed", type=int, default=2026, help="random seed")
    add("--device", type=int, help="GPU index, -1 for the CPU (default: the first GPU, or the CPU if there is none)")
    asked = parser.parse_args(arguments)
    for flag in ("epochs", "bsz"):
        if getattr(asked, flag) < 1:
            raise InputError(f"--{flag} {getattr(asked, flag)}: expected at least 1")
    if not 0 < asked.lr < 1:
        raise InputError(f"--lr {asked.lr}: expected a number above 0 and below 1")
    if asked.seed < 0:
        raise InputError(f"--seed {asked.seed}: expected at least 0")
    return asked


if __name__ == "__main__":
    run_command(main)
