"""Checks of the environment variables that huggingface_hub reads.

It reads them at import or first use, and its errors do not name the variable.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import ssl
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from method.runtime.errors import InputError

_TIMEOUTS = ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")
_PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")


def check_environment() -> None:
    """InputError with variable, value and remedy for any variable that makes the hub client fail."""
    check_timeouts()
    _unset_when_empty("HF_ENDPOINT")
    if "HF_ENDPOINT" in os.environ:
        check_endpoint(os.environ["HF_ENDPOINT"])
    for variable, value in _proxies().values():
        _check_proxy(variable, value)
    _check_certificates()


def check_timeouts() -> None:
    """InputError for a timeout that is not a number, which breaks the import of transformers too."""
    for name in _TIMEOUTS:
        _unset_when_empty(name)
        value = os.environ.get(name, "0")
        if not re.fullmatch(r"\s*[0-9]{1,6}\s*", value):
            raise InputError(f"{name} {value!r}: expected a whole number of seconds; unset it for the default of 10")


def check_endpoint(url: str) -> None:
    """InputError unless this is a valid hub URL."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(url)
        in_order = re.fullmatch(r"[\x21-\x7e]+", url) and parts.port != 0
        if parts.scheme in ("http", "https") and parts.hostname and in_order:
            return
    raise InputError(f"HF_ENDPOINT {url}: expected a URL such as https://huggingface.co; unset it for the default")


def proxy_of(url: str) -> str:
    """Variable and value of the proxy used for a URL; "" if there is none."""
    parts, proxies = urlsplit(url), _proxies()
    if proxy_bypass(parts.hostname or ""):
        return ""
    variable, value = proxies.get(parts.scheme, proxies.get("all", ("", "")))
    return f"{variable} {_without_password(value)}" if value else ""


def _proxies() -> dict[str, tuple[str, str]]:
    """Scheme, or "all" -> variable that sets its proxy, and value."""
    values = getproxies()
    if "*" in (host.strip() for host in values.get("no", "").split(",")):
        return {}
    found = {}
    for scheme in ("http", "https", "all"):
        if value := values.get(scheme):
            names = [name for name in os.environ if name.lower() == f"{scheme}_proxy" and os.environ[name] == value]
            found[scheme] = (min(names, default="the system's proxy"), value)
    return found


def _check_proxy(variable: str, value: str) -> None:
    shown = f"{variable} {_without_password(value)}"
    try:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        is_address = parts.scheme in _PROXY_SCHEMES and parts.hostname and parts.port != 0
    except ValueError:  # invalid port or unclosed bracket
        is_address = False
    if not is_address or re.search(r"\s", value):
        raise InputError(f"{shown}: not the address of a proxy, expected http://HOST:PORT; unset it to use none")
    if parts.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise InputError(
            f"{shown}: a SOCKS proxy needs the package socksio; `pip install socksio`, or unset {variable}"
        )


def _check_certificates() -> None:
    remedy = "expected trusted certificates in PEM format; unset it for those of the system"
    file, folders, key_log = (os.environ.get(name) for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if file:
        try:
            context.load_verify_locations(file)
        except OSError as error:
            reason = "no certificate in it" if isinstance(error, ssl.SSLError) else os.strerror(error.errno or 0)
            raise InputError(f"SSL_CERT_FILE {file}: {reason}, {remedy}") from error
    elif folders and not any(os.path.isdir(folder) for folder in folders.split(os.pathsep)):
        raise InputError(f"SSL_CERT_DIR {folders}: no such folder, {remedy}")
    if key_log:
        try:
            context.keylog_filename = key_log
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise InputError(f"SSLKEYLOGFILE {key_log}: {reason}, expected a file to write; unset it") from error


def _without_password(proxy: str) -> str:
    credentials, at, address = proxy.rpartition("@")
    scheme = f"{credentials.partition('://')[0]}://" if "://" in credentials else ""
    return f"{scheme}***@{address}" if at else proxy


def _unset_when_empty(variable: str) -> None:
    if not os.environ.get(variable, "x").strip():
        del os.environ[variable]
