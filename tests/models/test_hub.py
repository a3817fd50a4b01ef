"""Weights of the hub where there is no network: what was fetched before, and no minute of tries."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import huggingface_hub.utils
import pytest
from huggingface_hub import constants

from autotimm.models import hub
from autotimm.models.backbone import Backbone
from autotimm.structures import InputError


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that were looked up; none is found, and nobody waits."""
    names: list[str] = []

    def fail(host: str, *_: Any, **__: Any) -> Any:
        names.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(hub, "_PAUSE", 0.0)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return names


def test_the_client_does_not_try_and_the_line_says_why(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    with pytest.raises(InputError, match=r"of resnet10t: there is no network: the name hub.ex"):
        Backbone("resnet10t", pretrained=True)
    assert asked == ["hub.example"] * 2  # and none by the client
    assert waited == [0.0]
    assert not constants.HF_HUB_OFFLINE


def test_a_name_that_is_found_the_second_time_will_do(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def second(host: str, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        if len(asked) == 1:
            raise socket.gaierror(-3, "Temporary failure in name resolution")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 1))]  # refuses

    monkeypatch.setattr(socket, "getaddrinfo", second)
    with hub.without_network() as lacking:
        assert lacking == "" and not constants.HF_HUB_OFFLINE
    assert len(asked) == 2


def test_a_proxy_looks_names_up_itself(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    with hub.without_network() as lacking:
        assert lacking == "" and not constants.HF_HUB_OFFLINE
    assert asked == []


def test_hosts_without_a_proxy_are_no_proxy(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "localhost")
    with hub.without_network() as lacking:
        assert "hub.example" in lacking and constants.HF_HUB_OFFLINE
    assert len(asked) == 2


def test_an_endpoint_without_a_host_is_left_to_the_client(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "hub.example")  # no scheme
    with hub.without_network() as lacking:
        assert lacking == "" and not constants.HF_HUB_OFFLINE
    assert asked == []


def test_a_user_who_is_offline_stays_so(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with hub.without_network() as lacking:
        assert lacking == ""
    assert constants.HF_HUB_OFFLINE and asked == []


def test_a_hub_that_never_answers_is_no_network(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server whose queue is full, so that the system drops what knocks: no route looks alike."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, ExitStack() as stack:
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        place = (socket.AF_INET, socket.SOCK_STREAM, 6, "", server.getsockname())
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [place])
        monkeypatch.setattr(hub, "_CONNECT", 0.1)
        with hub.without_network() as lacking:
            assert "hub.example does not answer on port 443" in lacking
            assert constants.HF_HUB_OFFLINE
        assert not constants.HF_HUB_OFFLINE


def test_sessions_of_an_older_client_are_made_anew(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bool] = []
    monkeypatch.setattr(
        huggingface_hub.utils,
        "reset_sessions",
        lambda: made.append(constants.HF_HUB_OFFLINE),
        raising=False,
    )
    with hub.without_network():
        assert made == [True]
    assert made == [True, False]


def test_a_look_at_the_hub_has_a_limit(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.out_of_reach(4.0) == "the name hub.example is not found"
    assert asked == ["hub.example"]  # once
    ended = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: ended.wait() and [])
    assert hub.out_of_reach(0.01) == "hub.example does not answer within 0.01 s"
    ended.set()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("looked up"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.out_of_reach(4.0) == "HF_HUB_OFFLINE is set"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    assert hub.out_of_reach(4.0) == ""
