"""Engines of this machine that could give the same answer, with what was measured of each: why one is asked first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...providers.base import Provider, Status
from .offer import expected_s


def compared(
    providers: Mapping[str, Provider], statuses: Mapping[str, Status], model: str | None
) -> list[dict[str, Any]]:
    """A row for each that is ready and offers the model (None: any), JSON-compatible, in the configuration's order.

    Empty where there are not several: then nothing was compared. expected_s: seconds for an answer of 100 tokens.
    """
    rows: list[dict[str, Any]] = []
    for name, status in statuses.items():
        provider = providers.get(name)
        if provider is None or not provider.runs_here or not status.offers(model):
            continue
        wanted = model or status.default_model
        info = status.info(wanted)
        row: dict[str, Any] = {"provider": name, "model": wanted}
        if info is not None and not info.capabilities.writes:
            continue
        if info is not None:
            figures = (info.decode_tps, info.first_token_ms, info.measured_at, expected_s(info))
            names = ("decode_tps", "first_token_ms", "measured_at", "expected_s")
            row |= {key: value for key, value in zip(names, figures, strict=True) if value is not None}
        rows.append(row)
    return rows if len(rows) > 1 else []
