"""The content of a split's features, judged by the middle row of every array: reading all of it would take minutes."""

from __future__ import annotations

import hashlib
import logging

from method.data.dataset import TOKENS, FeatureReader
from method.data.splits import Split
from method.runtime.errors import InputError
from method.runtime.progress import progress_bar

log = logging.getLogger(__name__)


def check_content(split: Split, reader: FeatureReader) -> str:
    """Warn of arrays that are all zeros; returns a digest that tells these features from others of the same lengths.

    A feature extraction that broke off leaves arrays of zeros. The digest depends on the content of the arrays alone,
    not on the files that hold it: a copy of the dataset has the same.

    InputError when all arrays of a stream, or the token features of all captions, are zeros.
    """
    digest = hashlib.sha256()
    for key, source in reader.hdf5_sources.items():
        ids = [caption.id for caption in split.captions] if key == TOKENS else split.video_ids
        zeros = []
        for item_id in progress_bar(ids, f"{split.name}: looking into {key}", "item"):
            name = source.names.format(item_id)
            middle = source.file.read_middle(name, source.width)
            digest.update(middle.tobytes())
            if not middle.any() and not source.file.read(name, source.width).any():
                zeros.append(name)
        if zeros:
            what = f"{source.file.path}: {len(zeros)} of {len(ids)} {key} arrays of the {split.name} are all zeros"
            if len(zeros) == len(ids):
                raise InputError(f"{what}, expected features")
            log.warning("%s, the first is %r; was the extraction of the features broken off?", what, zeros[0])
    return digest.hexdigest()
