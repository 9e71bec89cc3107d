"""A model repository of the Hugging Face Hub, or one at a commit on GitHub: its files, and resumable downloads.

Requests use the client of huggingface_hub, so its environment variables (HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE,
timeouts, proxies, progress bars) have their usual meaning; call `check_environment` before importing this module. Its
high-level download functions are not used because they discard the partial file of an interrupted process.
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
from method.runtime.hub.paths import is_safe
from method.runtime.hub_environment import check_endpoint, proxy_of

log = logging.getLogger(__name__)

# The HTTP library differs between releases of huggingface_hub; this is the base class of its errors.
_TRANSPORTS = ("requests", "httpx", "httpx2")
_TransportError: type[Exception] = next(
    kind for kind in reversed(HfHubHTTPError.__mro__) if kind.__module__.split(".")[0] in _TRANSPORTS
)

_CHUNK_BYTES = 1 << 10


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: its path, size in bytes, and etag, which identifies its content."""

    path: str
    size: int
    etag: str


@dataclass(frozen=True)
class Repository:
    """A model repository at one commit.

    name: owner/name; revision: the requested branch, tag or commit; commit: what it resolves to; paths: its files;
    host: address of GitHub's raw files, which never gets the token of the Hub; None for the Hub.
    """

    name: str
    revision: str
    commit: str
    paths: tuple[str, ...]
    host: str | None = None

    def describe(self, path: str) -> RemoteFile:
        """Size and etag of a file. InputError if the repository lacks it or the hub does not report them."""
        with _hub_errors(self.name, f"no file {path} at {self.commit}", self.host):
            found = get_hf_file_metadata(self._address(path), token=self._token())
        if found.size is None or found.etag is None:
            raise InputError(f"{self.host or constants.ENDPOINT}: reports no size or etag for {self.name}/{path}")
        return RemoteFile(path, found.size, found.etag)

    def download_rest(self, file: RemoteFile, stream: BinaryIO) -> None:
        """Append the remaining bytes of `file` to `stream`, which is at its end.

        Broken connections are resumed a few times. InputError when the hub stays unreachable (`stream` keeps the
        received data) or sends a different number of bytes than announced (`stream` is emptied).
        """
        url = self._address(file.path)
        headers = build_hf_headers(token=self._token()) | {"Accept-Encoding": "identity"}
        target: Any = _LimitedStream(stream, 3 * file.size)
        settings: Any = {"expected_size": file.size, "displayed_filename": file.path}
        with _hub_errors(self.name, f"no file {file.path} at {self.commit}", self.host), _small_chunks():
            try:
                http_get(url, target, resume_size=stream.tell(), headers=headers, **settings)
            except ValueError as error:  # larger than the hub sends over HTTP, or too many retries
                raise InputError(f"{self.name}/{file.path}: {error}") from error
            except (_TransportError, OSError) as error:
                beyond_end = isinstance(error, HfHubHTTPError) and error.response.status_code == 416
                another_size = not isinstance(error, _TransportError) and getattr(error, "errno", None) is None
                if not (beyond_end or another_size):
                    raise
                stream.truncate(0)
                announced = f"the {file.size} bytes it announced"
                raise InputError(f"{self.name}/{file.path}: the hub does not send {announced}; run again") from error

    def _address(self, path: str) -> str:
        if self.host is None:
            return hf_hub_url(self.name, path, revision=self.commit)
        return f"{self.host}/{self.name}/{self.commit}/{path}"

    def _token(self) -> bool | None:
        return None if self.host is None else False


class _LimitedStream:
    """A stream that fails when a server keeps sending the same bytes."""

    def __init__(self, stream: BinaryIO, allowed: int) -> None:
        self._stream, self._allowed = stream, allowed

    def write(self, data: bytes) -> int:
        self._allowed -= len(data)
        if self._allowed < 0:
            raise ValueError("the connection keeps breaking; run again later")
        return self._stream.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _small_chunks() -> Iterator[None]:
    # The client buffers 10 MiB before writing, and loses the buffer when a connection breaks.
    size, constants.DOWNLOAD_CHUNK_SIZE = constants.DOWNLOAD_CHUNK_SIZE, _CHUNK_BYTES
    try:
        yield
    finally:
        constants.DOWNLOAD_CHUNK_SIZE = size


def open_repository(name: str, revision: str) -> Repository:
    """Look up a repository.

    Raises:
        InputError: no network, no such repository or revision, no permission to read it, or unsafe paths.
    """
    if "HF_HUB_VERBOSITY" not in os.environ:
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    check_endpoint(constants.ENDPOINT)
    _open_client()
    with _hub_errors(name, f"no such model, or no revision {revision} of it"), _valid_response(name):
        api = HfApi()
        # Without a network this call fails at once; listing the files would be retried for half a minute.
        found = api.model_info(name, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        commit = found.sha
        if found.siblings is not None:
            paths = [sibling.rfilename for sibling in found.siblings]
        else:  # some mirrors omit the files
            paths = api.list_repo_files(name, revision=commit)
    if not commit:
        raise InputError(f"{constants.ENDPOINT}: reports no commit for {name} at {revision}")
    if re.fullmatch("[0-9a-f]{40}", revision) and commit != revision:
        log.warning("%s: requested commit %s, but %s returned %s", name, revision, constants.ENDPOINT, commit)
    unsafe = [path for path in paths if not is_safe(path)]
    if unsafe:
        raise InputError(f"{name}: unsafe paths, they leave their folder: {summarize(unsafe)}")
    return Repository(name, revision, commit, tuple(sorted(paths)))


def github_repository(name: str, commit: str, paths: tuple[str, ...], host: str) -> Repository:
    """A repository on GitHub at a commit, with the paths that are known of it; nothing is requested yet."""
    _open_client()
    return Repository(name, commit, commit, paths, host)


def _open_client() -> None:
    try:
        get_session()
    except Exception as error:  # settings that check_environment does not know
        raise InputError(f"invalid network settings ({error!r})") from error


@contextlib.contextmanager
def _valid_response(name: str) -> Iterator[None]:
    # A login page or another server returns text that is not JSON, or JSON with other keys.
    try:
        yield
    except HFValidationError as error:
        raise InputError(f"{name}: not a repository name, expected owner/name") from error
    except UnicodeEncodeError as error:  # not shown, because it quotes the token
        raise InputError("HF_TOKEN: not a valid token") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{constants.ENDPOINT}: invalid response about {name}, expected a Hugging Face hub ({error!r})"
        ) from error


@contextlib.contextmanager
def _hub_errors(name: str, missing: str, host: str | None = None) -> Iterator[None]:
    # Disk errors pass through.
    hub = host or constants.ENDPOINT
    try:
        yield
    except GatedRepoError as error:
        where = f"{hub}/{name}"
        raise InputError(f"{name}: gated; accept its conditions at {where} and set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise InputError(f"{name} on {hub}: {missing}") from error
    except RepositoryNotFoundError as error:
        raise InputError(f"{name}: no such model on {hub}, or it is private (set HF_TOKEN)") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 404:
            raise InputError(f"{name} on {hub}: {missing}") from error
        reason = "set HF_TOKEN to a token with read access" if status in (401, 403) else "run again later"
        raise InputError(f"{name}: HTTP status {status} from {hub}; {reason}") from error
    except OfflineModeIsEnabled as error:
        raise InputError(f"{name}: HF_HUB_OFFLINE is set but files are missing; unset it to download") from error
    except _TransportError as error:
        text = str(error) or type(error).__name__
        checked = f"the network and the proxy {proxy}" if (proxy := proxy_of(hub)) else "the network"
        if "CERTIFICATE_VERIFY_FAILED" in text:
            checked = "its certificate (SSL_CERT_FILE can point to those of your network)"
        raise InputError(f"{hub}: connection failed ({text}); check {checked} and run again") from error
