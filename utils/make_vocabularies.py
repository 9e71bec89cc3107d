"""Make the vocabularies of hard negative queries for a dataset whose captions are there, own or released.

    pip install -r requirements-captions.txt
    python utils/make_vocabularies.py --dataset_name charades --overwrite

The four JSON files are written where the dataset's YAML file names them: for each caption its verbs and nouns with
their part-of-speech tags, and for each tag its words. Caches of hard negatives made with others are then refused.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import method  # noqa: F401 (sets OpenMP variables before torch is imported)

from method.config.options import VOCABULARY_FILES, read_options
from method.config.parser import Parser
from method.data.captions import read_captions
from method.data.dataset_files import check_files
from method.data.edits import KINDS
from method.negatives.editor import CaptionEditor
from method.negatives.vocabulary import read_vocabulary
from method.runtime.errors import InputError, run_command, summarize
from method.runtime.locks import exclusive_lock
from method.runtime.run_folder import log_to_terminal
from utils.captions.tagger import open_tagger
from utils.captions.text_folder import write_vocabularies

_LISTED_FLAGS = ["dataset_name", "config", "root_path", "caption_train_txt", "caption_test_txt", *VOCABULARY_FILES]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the vocabularies and print how many captions have edits."""
    log_to_terminal()
    options = read_options(
        arguments, "Make the vocabularies of hard negative queries.", listed=_LISTED_FLAGS, extra=_add_flags
    )
    captions_of = {flag: options[flag] for flag in ("caption_train_txt", "caption_test_txt")}
    check_files(captions_of, options.dataset_name, options.root_path)
    captions = {caption.id: caption for path in captions_of.values() for caption in read_captions(path)}
    files = {flag: options[flag] for flag in VOCABULARY_FILES}
    if unnamed := [flag for flag, path in files.items() if path is None]:
        raise InputError(f"dataset {options.dataset_name}: its YAML file names no {', '.join(unnamed)}")
    existing = [str(path) for path in files.values() if path.exists()]
    if existing and not options.overwrite:
        raise InputError(f"{summarize(existing, shown=4)}: already there; --overwrite replaces them")
    tagger = open_tagger(options.tagger)
    folder = files[VOCABULARY_FILES[0]].parent
    with exclusive_lock(folder.parent / ".captions.lock", f"{folder}: another process writes its files", wait=False):
        for path in files.values():  # so that files of two kinds of vocabularies are never there together
            path.unlink(missing_ok=True)
        write_vocabularies(files, list(captions.values()), tagger)
    for kind in KINDS:
        paths = files[f"id_{kind}_dict"], files[f"total_{kind}_dict"]
        editor = CaptionEditor(list(captions.values()), read_vocabulary(*paths, kind, captions))
        print(f"{paths[0]}: {editor.count_editable()} of {len(captions)} captions have {kind} edits")


def _add_flags(parser: Parser) -> None:
    parser.add_argument("--overwrite", action="store_true", default=False, help="replace vocabularies that are there")
    parser.add_argument("--tagger", help="model of spaCy that finds verbs and nouns (default: the small English one)")


if __name__ == "__main__":
    run_command(main)
