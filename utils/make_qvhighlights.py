"""Write QVHighlights in this program's layout, from the published annotations and features.

    python utils/make_qvhighlights.py qvhighlights/data                          # captions and moments
    python utils/make_qvhighlights.py qvhighlights/data --features qvhighlights/features

The first folder has `highlight_train_release.jsonl` and `highlight_val_release.jsonl`, the second `slowfast_features/`,
`clip_features/` (<vid>.npz) and `clip_text_features/` (qid<qid>.npz), all as Moment-DETR publishes them. The test split
has no public labels, so models are evaluated on val. A caption's id is <vid>#enc#<qid>.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from method.config.flags import make_parser
from method.config.options import CONFIGS, read_yaml
from method.config.parser import Parser, user_path
from method.data.features import ACTION_KEY, OBJECT_KEY
from method.runtime.errors import InputError, run_command, shown, summarize
from method.runtime.files import read_text, write_text
from method.runtime.run_folder import log_to_terminal
from method.runtime.text import split_lines
from utils.feature_files.arrays import ArrayFiles, array_files
from utils.feature_files.hdf5 import write_features

log = logging.getLogger(__name__)

_STREAMS = {ACTION_KEY: "slowfast_features", OBJECT_KEY: "clip_features"}
_TOKENS = "clip_text_features"


@dataclass(frozen=True)
class Annotation:
    """One query of QVHighlights; windows in seconds, in the order of the file."""

    qid: int
    vid: str
    query: str
    duration: float
    windows: tuple[tuple[float, float], ...]

    @property
    def caption_id(self) -> str:
        """The id of the query as a caption."""
        return f"{self.vid}#enc#{self.qid}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the caption files and the moments, and with --features the feature files."""
    log_to_terminal()
    parser = Parser(description="Write QVHighlights in this program's layout.")
    add = parser.add_argument
    add("annotations", type=user_path, help="folder with highlight_{train,val}_release.jsonl")
    add("--features", type=user_path, metavar="DIR", help="folder with slowfast_features/, clip_features/ and so on")
    add("--root_path", type=user_path, default=Path(), help="folder in which dataset/qvhighlights/ is written")
    given = parser.parse_args(arguments)
    paths = read_yaml(CONFIGS / "qvhighlights.yaml", make_parser(""))
    target = {name: given.root_path / value for name, value in paths.items() if isinstance(value, Path)}
    splits = {
        split: read_annotations(given.annotations / f"highlight_{name}_release.jsonl")
        for split, name in (("train", "train"), ("test", "val"))
    }
    _refuse_shared_qids(splits)
    for split, queries in splits.items():
        lines = [f"{query.caption_id} {query.query}\n" for query in queries]
        write_text(target[f"caption_{split}_txt"], "".join(lines))
        videos = len({query.vid for query in queries})
        print(f"{target[f'caption_{split}_txt']}: {len(queries)} captions of {videos} videos")
    rows = [json.dumps(moment_row(annotation)) for annotation in splits["test"] if annotation.windows]
    write_text(target["moments"], "".join(f"{row}\n" for row in rows))
    print(f"{target['moments']}: moments of {len(rows)} captions")
    if given.features:
        _convert(given.features, splits, target)


def read_annotations(path: Path) -> list[Annotation]:
    """Read an annotation file. InputError, naming file and line, for what is no annotation and for a repeated qid."""
    annotations: dict[int, Annotation] = {}
    problems = []
    for number, line in enumerate(split_lines(read_text(path)), start=1):
        if not line.strip():
            continue
        try:
            annotation = _parse(line)
        except ValueError as error:
            problems.append(f"line {number}: {error}")
            continue
        if annotation.qid in annotations:
            problems.append(f"line {number}: qid {annotation.qid} occurs a second time")
        annotations[annotation.qid] = annotation
    if problems:
        raise InputError(f"{path}: {summarize(problems)}")
    if not annotations:
        raise InputError(f"{path}: no annotations")
    return list(annotations.values())


def moment_row(annotation: Annotation) -> dict[str, Any]:
    """The line of a query in the moments file.

    `start` and `end` are those of its longest window, the first of equals: the moment metrics take one. `windows` keeps
    all of them.
    """
    start, end = max(annotation.windows, key=lambda window: window[1] - window[0])
    times = {"start": start, "end": end, "duration": annotation.duration}
    return {"cap_id": annotation.caption_id, **times, "windows": [list(window) for window in annotation.windows]}


def _parse(line: str) -> Annotation:
    """The annotation of a line. ValueError that says what is wrong."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError(f"expected a JSON object, found {shown(line)}") from None
    qid = row.get("qid") if isinstance(row, dict) else None
    if not isinstance(qid, int):
        raise ValueError(f"expected a JSON object with a whole number under 'qid', found {shown(line)}")
    vid, query, duration = (row.get(name) for name in ("vid", "query", "duration"))
    if not isinstance(vid, str) or not re.fullmatch(r"[^\s#/]+", vid):
        raise ValueError(f"qid {qid}: vid is {shown(vid)}, expected the id of a video")
    if not isinstance(query, str) or not query.strip():
        raise ValueError(f"qid {qid}: query is {shown(query)}, expected a sentence")
    if not _is_time(duration) or not duration:
        raise ValueError(f"qid {qid}: duration is {shown(duration)}, expected seconds above 0")
    windows = row.get("relevant_windows")
    if not isinstance(windows, list) or not all(map(_is_window, windows)):
        raise ValueError(f"qid {qid}: relevant_windows: expected [[start, end], ...] in seconds, start before end")
    return Annotation(qid, vid, " ".join(query.split()), duration, tuple((start, end) for start, end in windows))


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e9


def _is_window(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_time, value)) and value[0] < value[1]


def _refuse_shared_qids(splits: dict[str, list[Annotation]]) -> None:
    training = {annotation.qid for annotation in splits["train"]}
    if both := [str(annotation.qid) for annotation in splits["test"] if annotation.qid in training]:
        raise InputError(f"qid {summarize(both)}: in both annotation files")


def _convert(folder: Path, splits: dict[str, list[Annotation]], target: dict[str, Path]) -> None:
    """Write the feature files that are not there, of the annotated videos and queries alone."""
    queries = [query for own in splits.values() for query in own]
    videos, texts = target["video_feat_path"], target["text_feat_path"]
    if videos.exists():
        print(f"{videos}: is there already")
    else:
        first = videos.with_name(f"{videos.name}.first_stream")  # `videos` has both streams or is not there
        first.unlink(missing_ok=True)
        for number, (key, name) in enumerate(_STREAMS.items()):
            source = ArrayFiles(_files(folder / name, {query.vid: query.vid for query in queries}), "features")
            write_features(first, source, f"{{}}/{key}".format, add=number > 0)
        first.replace(videos)
        print(f"{videos}: features of {len(source.ids)} videos")
    if texts.exists():
        print(f"{texts}: is there already")
    else:
        files = _files(folder / _TOKENS, {query.caption_id: f"qid{query.qid}" for query in queries})
        write_features(texts, ArrayFiles(files, "last_hidden_state"), str)
        print(f"{texts}: token features of {len(files)} captions")


def _files(folder: Path, stems: dict[str, str]) -> dict[str, Path]:
    """The file of each id. InputError naming those that are missing."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    there = array_files(folder)
    if missing := [stem for stem in stems.values() if stem not in there]:
        raise InputError(f"{folder}: no file for {len(missing)} of {len(stems)}: {summarize(missing)}")
    return {item_id: there[stem] for item_id, stem in stems.items()}


if __name__ == "__main__":
    run_command(main)
