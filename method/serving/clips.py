"""Clips of the moments that a search found: files in a folder, each cut once."""

from __future__ import annotations

import hashlib
import logging
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from method.evaluation.moments import Moment
from method.runtime.files import atomic_writer, digest_of
from method.runtime.progress import progress_bar
from method.serving.answer import Answer, Hit, clean
from method.serving.output import Clips
from method.serving.videos import VideoFolder
from method.video.clips import read_comment, write_clip
from method.video.container import VideoError

log = logging.getLogger(__name__)

_VERSION = 1  # incremented when clips are cut in another way
_MAX_BYTES = 120  # of a part of a file's name


@dataclass(frozen=True)
class ClipFolder:
    """Cuts the moments of answers from video files.

    path: the folder of the clips. videos: the files to cut from.
    """

    path: Path
    videos: VideoFolder

    def save(self, answer: Answer, number: int | None = None) -> Clips:
        """Cut all moments of an answer, except those whose clips are there already.

        A video that is missing or cannot be read costs a line in the log.

        Args:
            answer: whose moments are cut.
            number: of the query, if there are several, which then get a folder each.

        Returns:
            The files, those that were there included.

        Raises:
            OSError: for a folder that cannot be written, such as on a full disk.
        """
        folder = self.path
        if number is not None:
            folder /= f"{number:04d}_{safe_name(answer.caption.id or answer.caption.text)}"
        folder.mkdir(parents=True, exist_ok=True)
        clips: dict[tuple[int, int], Path] = {}
        for hit in progress_bar(answer.hits, "saving clips", "video"):
            try:
                for place, moment in enumerate((hit.moment, *hit.further), start=1):
                    clips[hit.rank, place] = self._save(hit, moment, folder)
            except VideoError as error:
                log.warning("no clip of %s: %s", clean(hit.video_id), error.reason)
        log.info("%d clips in %s", len(clips), folder)
        return clips

    def _save(self, hit: Hit, moment: Moment, folder: Path) -> Path:
        video = self.videos.find(hit.video_id)
        if video is None:
            raise VideoError(f"no video file in {self.videos.path}")
        if hit.duration is None:
            raise VideoError("its duration is unknown")
        source, (start, end) = video[0], (place * hit.duration for place in (moment.start, moment.end))
        path = folder / f"{hit.rank:02d}_{safe_name(hit.video_id)}_{start:.1f}-{end:.1f}.mp4"
        try:
            status = source.stat()
        except OSError as error:
            raise VideoError(f"cannot be read ({error.strerror})") from error
        made_from = digest_of([_VERSION, status.st_size, status.st_mtime_ns, start, end])
        if read_comment(path) != made_from:
            with atomic_writer(path) as file:
                write_clip(source, file, start, end, made_from)
        return path


def safe_name(text: str) -> str:
    """A part of a file's name for any text, of letters, digits, dots and hyphens; different for different texts.

    >>> safe_name("3MSZA"), safe_name("trips/lake #1")
    ('3MSZA', 'trips_lake_1-db776e07')
    """
    letters = (letter if letter.isalnum() or letter in ".-" else " " for letter in unicodedata.normalize("NFC", text))
    safe = "_".join("".join(letters).split()).strip(".")
    safe = safe.encode("utf-8", "ignore")[:_MAX_BYTES].decode("utf-8", "ignore")
    if safe and safe == text:
        return safe
    return f"{safe}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
