"""`GET /v1/models` and `/v1/models/{id}`: what this node and its swarm offer, in OpenAI's shape.

{"id", "object": "model", "created", "owned_by", "shoal": {"context_length", "providers", "peers"}}
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import unquote

import msgspec

from ...protocols.http.exchange import Exchange
from ...providers.base import ModelInfo
from .errors import JSON, ApiError


class Offer(Protocol):
    """What this node's own providers offer (routing/candidates.py)."""

    def models(self) -> dict[str, tuple[ModelInfo, list[str]]]: ...


class PeersView(Protocol):
    """The peers as tables: {"peer", "connected", "models": [name or {"name", "context_length"}], ...}."""

    def peers(self) -> list[dict[str, Any]]: ...


class Models:
    """The handlers. `created` is the time at which this node started, as nobody knows the models' own."""

    def __init__(self, offer: Offer, swarm: PeersView) -> None:
        self._offer, self._swarm = offer, swarm
        self._created = int(time.time())

    def listed(self) -> dict[str, dict[str, Any]]:
        """Every model by name: this node's in the order of its providers, then the swarm's."""
        found: dict[str, dict[str, Any]] = {}
        for name, (model, providers) in self._offer.models().items():
            entry = self._entry(found, name, providers[0] if providers else "shoal")
            entry["shoal"]["context_length"] = model.context_length
            entry["shoal"]["providers"] = providers
        for peer in self._swarm.peers():
            if not peer.get("connected"):
                continue
            for offered in peer.get("models") or ():
                model_name = offered.get("name") if isinstance(offered, dict) else offered
                if not isinstance(model_name, str):
                    continue
                about = self._entry(found, model_name, "swarm")["shoal"]
                if peer["peer"] not in about["peers"]:
                    about["peers"].append(peer["peer"])
                if about["context_length"] is None and isinstance(offered, dict):
                    about["context_length"] = offered.get("context_length")
        return found

    def _entry(self, found: dict[str, dict[str, Any]], name: str, owner: str) -> dict[str, Any]:
        if name not in found:
            found[name] = {
                "id": name,
                "object": "model",
                "created": self._created,
                "owned_by": owner,
                "shoal": {"context_length": None, "providers": [], "peers": []},
            }
        return found[name]

    async def get_all(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        body = {"object": "list", "data": list(self.listed().values())}
        await exchange.respond(200, msgspec.json.encode(body), [JSON])

    async def get_one(self, exchange: Exchange, headers: Mapping[str, str], name: str) -> None:
        entry = self.listed().get(unquote(name))
        if entry is None:
            raise ApiError(
                404,
                "Nobody here or in the swarm offers this model; GET /v1/models lists them.",
                param="model",
                code="model_not_found",
            )
        await exchange.respond(200, msgspec.json.encode(entry), [JSON])
