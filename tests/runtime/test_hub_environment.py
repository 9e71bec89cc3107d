"""Variables with which the hub cannot be reached are named, with their values and what to do."""

from pathlib import Path

import pytest

from method.runtime.errors import InputError
from method.runtime.hub_environment import check_environment, proxy_of
from tests.helpers.hub_environment import clear_network

SOCKS = "a SOCKS proxy needs the package socksio; `pip install socksio`, or unset"
PROXY = "not the address of a proxy, expected http://HOST:PORT; unset it to use none"
PEM = "expected trusted certificates in PEM format; unset it for those of the system"
SECONDS = "expected a whole number of seconds; unset it for the default of 10"
HUB = "expected a URL such as https://huggingface.co; unset it for the default"


@pytest.mark.parametrize(("variable", "value", "message"), [
    ("ALL_PROXY", "socks5://127.0.0.1:9", f"socks5://127.0.0.1:9: {SOCKS} ALL_PROXY"),
    ("all_proxy", "socks5h://me:secret@[::1]:9", f"socks5h://***@[::1]:9: {SOCKS} all_proxy"),
    ("https_proxy", "socks5://127.0.0.1", f"socks5://127.0.0.1: {SOCKS} https_proxy"),
    ("HTTPS_PROXY", "http://127.0.0.1:port", f"http://127.0.0.1:port: {PROXY}"),
    ("HTTPS_PROXY", "http://me:sec:ret@host:port", f"http://***@host:port: {PROXY}"),
    ("HTTP_PROXY", "me:secret@127.0.0.1:80800", f"***@127.0.0.1:80800: {PROXY}"),
    ("http_proxy", "http://", f"http://: {PROXY}"),
    ("ALL_PROXY", "socks://127.0.0.1:1080/", f"socks://127.0.0.1:1080/: {PROXY}"),
    ("ALL_PROXY", "http://[::1:80", f"http://[::1:80: {PROXY}"),
    ("https_proxy", "http://host :80", f"http://host :80: {PROXY}"),
    ("HTTPS_PROXY", "ftp://host:80", f"ftp://host:80: {PROXY}"),
    ("HTTPS_PROXY", "http://host:0", f"http://host:0: {PROXY}"),
    ("SSL_CERT_FILE", "{tmp}/none.pem", f"{{tmp}}/none.pem: No such file or directory, {PEM}"),
    ("SSL_CERT_FILE", "{tmp}/empty.pem", f"{{tmp}}/empty.pem: no certificate in it, {PEM}"),
    ("SSL_CERT_FILE", "{tmp}", f"{{tmp}}: Is a directory, {PEM}"),
    ("SSL_CERT_DIR", "{tmp}/none", f"{{tmp}}/none: no such folder, {PEM}"),
    ("SSLKEYLOGFILE", "{tmp}/none/x", "{tmp}/none/x: No such file or directory, expected a file to write; unset it"),
    *((variable, value, f"{value!r}: {SECONDS}") for variable in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")
        for value in ("abc", "1.5", "-3", "10s", "9" * 99)),
    *(("HF_ENDPOINT", url, f"{url}: {HUB}")
        for url in ("http://[::1", "huggingface.co", "ftp://hub", "http://", "http://a b", "http://hub:port")),
])  # fmt: skip
def test_unusable_variables(
    variable: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty.pem").touch()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    clear_network(monkeypatch)
    check_environment()
    monkeypatch.setenv(variable, value.format(tmp=tmp_path))
    with pytest.raises(InputError) as caught:
        check_environment()
    assert str(caught.value) == f"{variable} {message.format(tmp=tmp_path)}"


def test_a_socks_proxy_works_where_its_package_is(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_network(monkeypatch)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    check_environment()
    assert proxy_of("https://huggingface.co") == "ALL_PROXY socks5://127.0.0.1:9"


def test_the_proxy_of_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_network(monkeypatch)
    assert proxy_of("https://hub.example") == ""
    variables = {"ALL_PROXY": "a:1", "HTTP_PROXY": "b:2", "http_proxy": "c:3", "NO_PROXY": "near.example"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert proxy_of("https://hub.example") == "ALL_PROXY a:1"
    assert proxy_of("http://hub.example") == "http_proxy c:3"
    assert proxy_of("http://near.example") == ""
    monkeypatch.setenv("NO_PROXY", "x, *")
    assert proxy_of("http://hub.example") == ""
