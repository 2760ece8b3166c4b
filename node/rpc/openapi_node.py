"""What the node's own operations take (`/shoal/v1`, `/ipfs`), for the description: their bodies and queries.

Their handlers read bodies by hand, since commands of other versions send them; here stands what they read.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

from msgspec import UNSET, Meta, Struct, UnsetType

from .ipfs_gateway import SCOPES
from .node_api import MAX_LIST
from .swarm_api import MAX_PAUSE_S


class Join(Struct):
    """An invite as `shoal status` shows it."""

    invite: str


class Pin(Struct):
    """The CID of an answer or of a request."""

    cid: str
    pinned: bool = True


class Forget(Struct):
    """Either the CID of an answer or of a request, or the request itself: a chat, or an embedding (it has `input`).

    near: also the same messages asked of other models, and with temperature 0.
    """

    cid: str | UnsetType = UNSET
    request: dict[str, Any] | UnsetType = UNSET
    near: bool = False


class Roster(Struct):
    """Statement and signature, in base64, as the swarm's owner has made them."""

    roster: Annotated[list[str], Meta(min_length=2, max_length=2)]


class Pause(Struct):
    """For so many seconds; without a number, until resumed."""

    seconds: Annotated[float, Meta(gt=0, le=MAX_PAUSE_S)] | None = None


class Param(NamedTuple):
    """A field of the query, and its JSON schema."""

    name: str
    schema: dict[str, Any]
    about: str


QUERIES: dict[tuple[str, str], tuple[Param, ...]] = {
    ("get", "/shoal/v1/cache"): (
        Param("list", {"type": "integer", "minimum": 1, "maximum": MAX_LIST}, "The newest answers, so many"),
    ),
    ("get", "/shoal/v1/cache/{cid}"): (Param("format", {"enum": ["raw"]}, "The block as it is"),),
    ("get", "/shoal/v1/cache/export"): (
        Param("since", {"type": "integer", "minimum": 0, "maximum": 10**15 - 1}, "Milliseconds since 1970"),
        Param("model", {"type": "string"}, "Only answers of this model"),
    ),
    ("post", "/shoal/v1/cache/import"): (
        Param("public", {"enum": ["true", "false"]}, "false: keep them to this node"),
    ),
    ("get", "/ipfs/{cid}"): (
        Param("format", {"enum": ["raw", "car"]}, "In place of Accept"),
        Param("dag-scope", {"enum": list(SCOPES)}, "How much of the DAG a CAR holds"),
        Param("car-version", {"enum": ["1"]}, "The CAR's version"),
    ),
}
"""By method and path."""


def parameters(method: str, path: str) -> list[dict[str, Any]]:
    """The query's fields as OpenAPI has them."""
    return [
        {"name": field.name, "in": "query", "description": field.about, "schema": field.schema}
        for field in QUERIES.get((method, path), ())
    ]
