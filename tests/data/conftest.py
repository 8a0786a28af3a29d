"""Fixtures for the download tests: loopback servers, and an environment without proxies or a mirror."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def servers() -> ModuleType:
    """The module `servers.py` that lies beside this file; tests are no package, so it is loaded by path."""
    spec = importlib.util.spec_from_file_location("genomem_test_servers", Path(__file__).with_name("servers.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    with warnings.catch_warnings():
        # The FTP server is built on modules that Python 3.11 calls old.
        warnings.filterwarnings("ignore", r"The (asyncore|asynchat) module is deprecated", DeprecationWarning)
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def direct_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy of the environment stands between the test and its own server."""
    for name in ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def http(servers: ModuleType, direct_network: None) -> Iterator:
    """An HTTP server on the loopback."""
    with servers.http_site() as site:
        yield site


@pytest.fixture
def ftp(servers: ModuleType, direct_network: None) -> Iterator[Callable]:
    """Starts FTP servers on the loopback: `ftp(folder, rest=True, dates=True)`."""
    with ExitStack() as stack:
        yield lambda folder, **options: stack.enter_context(servers.ftp_site(folder, **options))
