"""What the last probe found of one of this node's providers, in the form in which requests ask for it.

A request asks by a model's name, thousands of times between two probes: a candidate is made once for each name.
"""

from __future__ import annotations

from ...providers.base import GenerateRequest, ModelInfo, Provider, Status
from ...providers.embedding import able
from .candidate import Candidate
from .speed import TYPICAL_EVENTS

MAX_NAMES = 512
"""Names whose candidates are kept; a provider of any model may be asked for more."""


class Offer:
    """in_place: its place among this machine's engines is the owner's choice, not that of their speed."""

    __slots__ = ("_by_name", "_candidates", "_in_place", "_name", "provider", "status")

    def __init__(self, name: str, provider: Provider, status: Status, *, in_place: bool) -> None:
        self.provider, self.status = provider, status
        self._name, self._in_place = name, in_place
        self._by_name = {model.name: model for model in reversed(status.models)}
        self._candidates: dict[str | None, Candidate | None] = {}

    def candidate(self, request: GenerateRequest) -> Candidate | None:
        """Who answers the request here; None: not this one."""
        if request.embed is not None:
            return self._of(able(self.provider), request.model, embed=True)
        model = request.model
        try:
            return self._candidates[model]
        except KeyError:
            if len(self._candidates) >= MAX_NAMES:
                self._candidates.clear()
            found = self._candidates[model] = self._of(self.provider, model, embed=False)
            return found

    def _of(self, provider: Provider | None, model: str | None, *, embed: bool) -> Candidate | None:
        status = self.status
        if provider is None or not status.ready:
            return None
        if model is None:
            embedding = (m.name for m in status.models if m.capabilities.embeds)
            model = next(embedding, None) if embed else status.default_model
        elif model not in self._by_name and not status.any_model:
            return None
        info = self._by_name.get(model) if model is not None else None
        if info is None:
            return Candidate(provider=provider, name=self._name, model=model, here=self._here)
        if not does(info, embed=embed):
            return None
        return Candidate(
            provider=provider,
            name=self._name,
            model=model,
            context_length=info.context_length,
            continues=info.capabilities.continues,
            here=self._here,
            expected_s=expected_s(info) if self._here else None,
            images=info.capabilities.images,
        )

    @property
    def _here(self) -> bool:
        return self.provider.runs_here and not self._in_place


def does(info: ModelInfo, *, embed: bool) -> bool:
    """Whether the model may do what is asked of it: make vectors (`embed`), or write."""
    return info.capabilities.embeds is not False if embed else info.capabilities.writes


def expected_s(info: ModelInfo) -> float | None:
    """Seconds for an answer of usual length, as measured before; None where it never was."""
    if not info.decode_tps:
        return None
    return (info.first_token_ms or 0.0) / 1000 + TYPICAL_EVENTS / info.decode_tps
