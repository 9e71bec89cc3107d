"""One model repository of the Hugging Face Hub: what it holds, and the bytes of its files from any point on.

Every request goes through huggingface_hub's own client, so its environment variables (HF_ENDPOINT, HF_TOKEN,
HF_HUB_OFFLINE, timeouts, proxies, progress bars) mean here what they mean everywhere; `check_environment` belongs
before the import of this module. Its usual download functions are not used: they throw away what an interrupted process
has fetched.
"""

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, get_session  # type: ignore[attr-defined]

from method.runtime.errors import InputError, summarize
from method.runtime.hub_environment import check_endpoint, proxy_of
from utils.hub.fetch import is_safe

log = logging.getLogger(__name__)

# The client's transport differs between releases of huggingface_hub (requests, httpx, httpx2); the root of its errors.
_TRANSPORTS = ("requests", "httpx", "httpx2")
_TransportError: type[Exception] = next(
    kind for kind in reversed(HfHubHTTPError.__mro__) if kind.__module__.split(".")[0] in _TRANSPORTS
)

_PIECE = 1 << 10  # bytes


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository. path: its name there; size: bytes; etag: what the hub says identifies its content."""

    path: str
    size: int
    etag: str


@dataclass(frozen=True)
class Repository:
    """A model repository at one commit.

    name: owner/name; revision: the branch, tag or commit asked for; commit: what it stands for now; paths: its files.
    """

    name: str
    revision: str
    commit: str
    paths: tuple[str, ...]

    def describe(self, path: str) -> RemoteFile:
        """Size and etag of a file. InputError when the repository lacks it or the hub does not tell."""
        with _in_one_line(self.name, f"no file {path} at {self.commit}"):
            found = get_hf_file_metadata(hf_hub_url(self.name, path, revision=self.commit))
        if found.size is None or found.etag is None:
            raise InputError(f"{constants.ENDPOINT}: gives no size or no etag for {self.name}/{path}")
        return RemoteFile(path, found.size, found.etag)

    def append_rest(self, file: RemoteFile, stream: BinaryIO) -> None:
        """Append to `stream`, which stands at its end, the bytes of `file` that it still lacks.

        A connection that breaks is taken up again where it broke, a few times. InputError when the hub is lost for
        good (what came is kept in `stream`) or sends another number of bytes than it announced (`stream` is emptied).
        """
        url = hf_hub_url(self.name, file.path, revision=self.commit)
        headers = build_hf_headers() | {"Accept-Encoding": "identity"}
        target: Any = _Patient(stream, 3 * file.size)
        settings: Any = {"expected_size": file.size, "displayed_filename": file.path}
        with _in_one_line(self.name, f"no file {file.path} at {self.commit}"), _in_small_pieces():
            try:
                http_get(url, target, resume_size=stream.tell(), headers=headers, **settings)
            except ValueError as error:  # larger than the hub sends over HTTP, or out of patience
                raise InputError(f"{self.name}/{file.path}: {error}") from error
            except (_TransportError, OSError) as error:
                beyond_end = isinstance(error, HfHubHTTPError) and error.response.status_code == 416
                another_size = not isinstance(error, _TransportError) and getattr(error, "errno", None) is None
                if not (beyond_end or another_size):
                    raise
                stream.truncate(0)
                announced = f"the {file.size} bytes that it announced"
                raise InputError(f"{self.name}/{file.path}: the hub does not send {announced}; run again") from error


class _Patient:
    """A stream that gives up on a server that sends the same bytes over and over."""

    def __init__(self, stream: BinaryIO, allowed: int) -> None:
        self._stream, self._allowed = stream, allowed

    def write(self, data: bytes) -> int:
        self._allowed -= len(data)
        if self._allowed < 0:
            raise ValueError("the connection breaks again and again; run again later")
        return self._stream.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _in_small_pieces() -> Iterator[None]:
    # The client collects 10 MiB before it writes them, and loses what it has collected when a connection breaks.
    size, constants.DOWNLOAD_CHUNK_SIZE = constants.DOWNLOAD_CHUNK_SIZE, _PIECE
    try:
        yield
    finally:
        constants.DOWNLOAD_CHUNK_SIZE = size


def open_repository(name: str, revision: str) -> Repository:
    """Look a repository up.

    Raises:
        InputError: no network, no such repository or revision, no right to read it, or file names that would leave
            the folder they are written to.
    """
    if "HF_HUB_VERBOSITY" not in os.environ:
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    check_endpoint(constants.ENDPOINT)
    _open_client()
    with _in_one_line(name, f"no such model, or no revision {revision} of it"), _a_hub_answers(name):
        api = HfApi()
        # The hub answers a listing with retries for half a minute when there is no network, this call at once.
        found = api.model_info(name, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        commit = found.sha
        if found.siblings is not None:
            paths = [sibling.rfilename for sibling in found.siblings]
        else:  # some mirrors leave the files out
            paths = api.list_repo_files(name, revision=commit)
    if not commit:
        raise InputError(f"{constants.ENDPOINT}: names no commit for {name} at {revision}")
    if re.fullmatch("[0-9a-f]{40}", revision) and commit != revision:
        log.warning("%s: asked for commit %s, %s gives %s", name, revision, constants.ENDPOINT, commit)
    unsafe = [path for path in paths if not is_safe(path)]
    if unsafe:
        raise InputError(f"{name}: refused, file names that leave their folder: {summarize(unsafe)}")
    return Repository(name, revision, commit, tuple(sorted(paths)))


def _open_client() -> None:
    try:
        get_session()
    except Exception as error:  # the environment is checked before; whatever it or the system may still set wrongly
        raise InputError(f"the network settings of this machine cannot be used ({error!r})") from error


@contextlib.contextmanager
def _a_hub_answers(name: str) -> Iterator[None]:
    # A login page or another server gives text that is not JSON, or JSON without what a hub says.
    try:
        yield
    except HFValidationError as error:
        raise InputError(f"{name}: not the name of a repository, expected owner/name") from error
    except UnicodeEncodeError as error:  # not shown: it quotes the token
        raise InputError("HF_TOKEN: not a token of a Hugging Face hub") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{constants.ENDPOINT}: no answer of a Hugging Face hub about {name} ({error!r})") from error


@contextlib.contextmanager
def _in_one_line(name: str, missing: str) -> Iterator[None]:
    # Errors of the disk pass through: they are not the hub's.
    hub = constants.ENDPOINT
    try:
        yield
    except GatedRepoError as error:
        where = f"{hub}/{name}"
        raise InputError(f"{name}: gated, accept its conditions at {where} and set HF_TOKEN to your token") from error
    except RevisionNotFoundError as error:
        raise InputError(f"{name} on {hub}: {missing}") from error
    except RepositoryNotFoundError as error:
        raise InputError(f"{name}: no such model on {hub}, or a private one (set HF_TOKEN to your token)") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 404:
            raise InputError(f"{name} on {hub}: {missing}") from error
        reason = "set HF_TOKEN to a token that may read it" if status in (401, 403) else "run again later"
        raise InputError(f"{name}: {hub} answered with HTTP status {status}; {reason}") from error
    except OfflineModeIsEnabled as error:
        raise InputError(f"{name}: HF_HUB_OFFLINE is set and not everything is here; unset it to download") from error
    except _TransportError as error:
        text = str(error) or type(error).__name__
        checked = f"the network and the proxy {proxy}" if (proxy := proxy_of(hub)) else "the network"
        if "CERTIFICATE_VERIFY_FAILED" in text:
            checked = "its certificate: SSL_CERT_FILE can name a file of those that your network uses"
        raise InputError(f"{hub}: lost or not reachable ({text}); check {checked} and run again") from error
