"""The running node's event feed (rpc/events_feed.py), for commands that show what goes on.

async with connect(data_dir) as node:
    async for sections in follow(node):
        print(sections["requests"]["live"])
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from ...protocols.http.client import ClientError
from ...protocols.http.sse import SseParser
from .client import MAX_ANSWER_BYTES, Node, lost, refusal

SECTIONS = frozenset({"node", "providers", "peers", "cache", "requests"})
"""What is told before the first state is whole."""


async def follow(node: Node) -> AsyncGenerator[dict[str, Any]]:
    """The whole state after each piece of news: section -> its facts. CommandError when the node is gone."""
    sections: dict[str, Any] = {}
    parser = SseParser()
    try:
        async with node.http.request("GET", node.url + "/shoal/v1/events") as response:
            if response.status != 200:
                raise refusal(response.status, await response.read(MAX_ANSWER_BYTES))
            async for data in response:
                news = parser.feed(data)
                for event in news:
                    sections[event.event] = msgspec.json.decode(event.data)
                if news and sections.keys() >= SECTIONS:
                    yield sections
    except ClientError as error:
        raise lost(node.state, error) from None
