"""Log lines: for people or for machines, one a line, and without what must not be in them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
from shoal.node import log


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("shoal")
    before = root.handlers[:], root.level, ours.level, logging.raiseExceptions
    yield
    root.handlers[:], root.level, ours.level, logging.raiseExceptions = before


def lines(form: str, level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    log.set_up(level, form, stream)  # type: ignore[arg-type]
    return stream


def test_a_line_for_people_has_clock_level_place_message_and_fields() -> None:
    out = lines("human")
    logging.getLogger("shoal.swarm").info("peer connected", extra={"peer": "12D3", "why": "an invite"})
    assert out.getvalue()[8:] == ' info    swarm: peer connected peer=12D3 why="an invite"\n'


def test_a_line_for_machines_is_one_json_object() -> None:
    out = lines("json")
    logging.getLogger("shoal.rpc").warning("slow\nclient", extra={"bytes": 3, "path": object()})
    (line,) = out.getvalue().splitlines()
    record = json.loads(line)
    assert record["message"] == "slow\nclient"
    assert (record["level"], record["logger"], record["bytes"]) == ("warning", "shoal.rpc", 3)
    assert record["time"].endswith("Z")


@pytest.mark.parametrize("form", ["human", "json"])
def test_a_field_named_like_a_secret_is_not_let_through(form: str) -> None:
    out = lines(form)
    logging.getLogger("shoal.rpc").info("asked", extra={"prompt": "who am I", "api_key": "sk-1"})
    assert "who am I" not in out.getvalue()
    assert "sk-1" not in out.getvalue()


def test_a_peers_text_cannot_move_the_cursor_or_start_a_line() -> None:
    out = lines("human")
    logging.getLogger("shoal.swarm").info("goaway: %s", "x\n\x1b[2Jforged", extra={"agent": "\x07a\r"})
    assert out.getvalue().count("\n") == 1
    assert "\x1b" not in out.getvalue()
    assert "\x07" not in out.getvalue()


@pytest.mark.parametrize("form", ["human", "json"])
def test_an_exception_is_shown_with_its_traceback(form: str) -> None:
    out = lines(form)
    try:
        raise ValueError("no good")
    except ValueError:
        logging.getLogger("shoal.rpc").exception("failed")
    assert "no good" in out.getvalue()
    assert "Traceback" in out.getvalue()


def test_levels_below_the_configured_one_and_chatty_libraries_are_silent() -> None:
    out = lines("human", "warning")
    logging.getLogger("shoal.rpc").info("detail")
    logging.getLogger("libp2p.network").warning("chatter")
    logging.getLogger("other").info("chatter")
    assert out.getvalue() == ""


def test_setting_up_twice_does_not_double_the_lines() -> None:
    out = lines("human")
    log.set_up("info", "human", out)
    logging.getLogger("shoal.rpc").info("once")
    assert out.getvalue().count("once") == 1
