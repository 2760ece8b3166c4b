"""What `shoal top` shows: the state of the event feed as lines for a terminal of a given size. No I/O."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .output import duration, size, without_controls

DIM, GOOD, WARN, BAD, LIVE = "bright_black", "green", "yellow", "red", "cyan"
CACHED = ("memory", "disk", "swarm", "dht", "ipfs")
NARROW = 70
"""Columns below which the lesser of them go."""
ABOUT_ROWS = 12
"""Lines that are not requests, peers or providers: headings, blanks, the cache."""


def screen(sections: dict[str, Any], width: int, height: int) -> RenderableType:
    """All of it. Requests get the lines that peers and providers leave."""
    node, requests = sections["node"], sections["requests"]
    peers = sections["peers"].get("peers", [])
    providers = [row for row in sections["providers"].get("providers", []) if row.get("configured", True)]
    room = max(6, height - ABOUT_ROWS)
    for_providers = min(len(providers), max(2, room // 4))
    for_peers = min(len(peers), max(2, (room - for_providers) // 2))
    rows = requests.get("requests", [])[: max(3, room - for_providers - max(1, for_peers))]
    parts: list[RenderableType] = [_head(node, requests, peers, width), Text()]
    parts += [_title("Requests"), _requests(rows, width), Text()]
    parts += [_title("Peers", len(peers) - for_peers), _peers(peers[:for_peers], width), Text()]
    parts += [_title("Providers", len(providers) - for_providers), _providers(providers[:for_providers], width), Text()]
    parts += [_title("Cache"), _cache(sections["cache"], width)]
    return Group(*parts)


def _head(node: dict[str, Any], requests: dict[str, Any], peers: list[dict[str, Any]], width: int) -> RenderableType:
    swarm = node.get("swarm") or {}
    counts = requests.get("by_cache") or {}
    answers = (requests.get("finished") or {}).get("ok", 0)  # and not what nobody answered
    cached = sum(counts.get(tier, 0) for tier in CACHED)
    near = sum(bool(peer.get("connected")) for peer in peers)
    left = Text.assemble(("Shoal ", "bold"), (str(node.get("version", "")), DIM), "  ", plain(swarm.get("name", "")))
    if width >= NARROW:
        left.append(f"  up {duration(float(node.get('uptime_s') or 0))}", DIM)
    right = Text()
    for number, word in (
        (str(near), "peer" if near == 1 else "peers"),
        (str(requests.get("live", 0)), "in flight"),
        (f"{requests.get('tokens_per_s') or 0:.0f}", "tok/s"),
        (f"{round(100 * cached / answers)}%" if answers else "-", "cached"),
    ):
        right.append("   " if right else "")
        right.append(number, "bold")
        right.append(f" {word}", DIM)
    if width < NARROW:
        left.truncate(max(12, width), overflow="ellipsis")
        right.truncate(width, overflow="ellipsis")
        return Group(left, right)
    head = Table.grid(expand=True)
    head.add_column(no_wrap=True)
    head.add_column(no_wrap=True, justify="right")
    head.add_row(left, right)
    return head


def _title(name: str, more: int = 0) -> Text:
    title = Text(name, "bold")
    if more > 0:
        title.append(f"  {more} more", DIM)
    return title


def _grid(*columns: dict[str, Any]) -> Table:
    grid = Table.grid(padding=(0, 2), expand=True, pad_edge=False)
    for column in columns:
        grid.add_column(no_wrap=True, overflow="ellipsis", **column)
    return grid


def _requests(rows: Iterable[dict[str, Any]], width: int) -> RenderableType:
    narrow = width < NARROW
    grid = _grid({"width": 8}, {"ratio": 3}, {"ratio": 4}, {"justify": "right"}, {"justify": "right", "width": 11})
    if narrow:
        grid = _grid({"ratio": 4}, {"ratio": 3}, {"justify": "right", "width": 11})
    empty = True
    for row in rows:
        empty = False
        live, ok = row["state"] == "live", row["state"] == "ok"
        when = Text("now", LIVE) if live else Text(time.strftime("%H:%M:%S", time.localtime(row["at"])), DIM)
        model = plain(row["model"] or "any model")
        if (row.get("times") or 0) > 1:
            model.append(f" x{row['times']}", DIM)
        speed = Text(f"{row['tokens_per_s']:.0f}/s" if row["tokens_per_s"] else "", LIVE if live else DIM)
        took = duration(row["ms"] / 1000) if row["ms"] >= 1 else "< 1 ms"
        ended = Text(took) if live or ok else plain(row["state"].replace("_", " "), BAD)
        if row["state"] == "cancelled":
            ended = Text("caller left", DIM)
        cells = (model, _route(row), ended) if narrow else (when, model, _route(row), speed, ended)
        grid.add_row(*cells)
    return Text("nothing asked yet", DIM) if empty else grid


def _route(row: dict[str, Any]) -> Text:
    if row["cache"] in CACHED:
        return Text.assemble(("from ", DIM), row["cache"], (", by ", DIM), plain(row["provider"] or "?"))
    text = Text()
    for attempt in row["route"]:
        if text:
            text.append(" → ", DIM)
        failed = attempt["outcome"] not in ("ok", "live", "cancelled")
        text.append_text(plain(attempt["provider"], DIM if failed else ""))
        if failed:
            text.append_text(plain(" " + attempt["outcome"].replace("_", " "), BAD))
    return text or plain(row["provider"] or "nobody", DIM)


def _peers(rows: list[dict[str, Any]], width: int) -> RenderableType:
    if not rows:
        return Text("none yet; `shoal status` shows the invite that another machine needs", DIM)
    narrow = width < NARROW
    grid = _grid({"width": 8}, {"ratio": 3}, {"ratio": 3}, {"justify": "right"}, {"justify": "right", "width": 11})
    if narrow:
        grid = _grid({"width": 8}, {"ratio": 1}, {"justify": "right", "width": 9})
    for peer in rows:
        near = bool(peer.get("connected"))
        running = (peer.get("load") or {}).get("running") or peer.get("calls") or 0
        dot = Text("● " if near else "○ ", (LIVE if running else GOOD) if near else DIM)
        names = [str(m.get("name", "")) if isinstance(m, dict) else str(m) for m in peer.get("models") or ()]
        offer = ", ".join(names) or ("shares nothing" if near else str(peer.get("problem") or "away"))
        rtt = duration(peer["rtt_s"]) if isinstance(peer.get("rtt_s"), int | float) else ""
        state = f"{running} running" if running else "" if near else "away"
        who, what = dot.append_text(plain(str(peer.get("peer", ""))[-6:])), plain(offer, "" if names else DIM)
        doing = Text(state, LIVE if running else DIM)
        if narrow:
            grid.add_row(who, what, doing)
        else:
            grid.add_row(who, what, plain(machine(peer.get("hardware") or {}), DIM), Text(rtt, DIM), doing)
    return grid


def _providers(rows: list[dict[str, Any]], width: int) -> RenderableType:
    if not rows:
        return Text("none; `shoal providers` says what could be set up", DIM)
    narrow = width < NARROW
    grid = _grid({"ratio": 3}, {"ratio": 4}) if narrow else _grid({"ratio": 2}, {"width": 9}, {"ratio": 5})
    for row in rows:
        waits = row.get("waits") or []
        colour = (WARN if waits else GOOD) if row["ready"] else BAD
        names = ", ".join(str(m.get("name", "")) for m in row.get("models") or ())
        held = ", ".join(f"{w['kind'].replace('_', ' ')}, again in {w['until_s']} s" for w in waits[:2])
        about = held or names if row["ready"] else row["reason"]
        state = "resting" if waits else "ready" if row["ready"] else "not ready"
        name = Text("● ", colour).append_text(plain(row["name"]))
        cells = (name, plain(about, DIM)) if narrow else (name, Text(state, DIM), plain(about, DIM))
        grid.add_row(*cells)
    return grid


def _cache(cache: dict[str, Any], width: int) -> Text:
    if not cache.get("enabled"):
        return Text("off", DIM)
    hits, text = cache.get("hits") or {}, Text()
    found = sum(hits.values())
    text.append(f"{found} found", "")
    text.append(f", {cache.get('misses', 0)} missed", DIM)
    for tier in ("memory", "disk"):
        if about := cache.get(tier):
            text.append(f"   {tier} ", DIM)
            text.append(f"{about['answers']} in {size(about['bytes'])}")
            if width >= NARROW:
                text.append(f" of {size(about['max_bytes'])}", DIM)
    if refused := sum((cache.get("refused") or {}).values()):
        text.append(f"   {refused} refused", WARN)
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def machine(hardware: dict[str, Any]) -> str:
    """`RTX 4090, 24.0 GiB · 32 cores · 128.0 GiB`."""
    parts = [str(gpu.get("name", "")) for gpu in hardware.get("gpus") or ()]
    if cores := hardware.get("cores_usable"):
        parts.append(f"{cores:g} cores")
    if memory := hardware.get("memory_bytes"):
        parts.append(size(int(memory)))
    return " · ".join(parts)


def plain(text: str, style: str = "") -> Text:
    """Somebody's words: never markup, never a control character, one line."""
    return Text(without_controls(str(text)).replace("\n", " ").replace("\t", " "), style)
