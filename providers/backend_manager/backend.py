"""One backend: an OpenAI-compatible server with what was seen of it, and the checks that it answers.

Requests go through its own `OpenAiCompat`; when it is asked and what follows from a failure is policy.py.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import msgspec
import trio

from ..base import ErrorKind, GenerateRequest, ModelInfo, ProviderError, Status
from ..openai_compat import OpenAiCompat
from . import server_kinds
from .policy import Breaker, Pace, Seen
from .server_kinds import Busy, Kind
from .settings import BackendSettings

log = logging.getLogger("shoal.providers.backend_manager")

CHECK_S = 5.0
"""Seconds that one check may take; a server that computes can be slow to say so."""
METRICS_BYTES = 1024 * 1024
BUSY_S = 30.0
"""Seconds for which a server's own figures are believed."""
_SMALL = 64 * 1024


class Backend:
    """name: as configured. provider: how its requests are sent."""

    def __init__(self, name: str, settings: BackendSettings, provider: OpenAiCompat) -> None:
        self.name, self.settings, self.provider = name, settings, provider
        self.pace, self.breaker = Pace(), Breaker()
        self.kind: Kind = settings.kind
        self.version = ""
        self.status = Status(ready=False, reason="not looked at yet")
        self.looked = trio.Event()
        self.mine = 0
        self._root = server_kinds.root_of(settings.base_url)
        self._busy: tuple[float, Busy, int] | None = None
        self._kind_known = settings.kind != "auto"

    # -- what is known -----------------------------------------------------------------------------------------

    def seen(self, now: float) -> Seen:
        return Seen(
            name=self.name,
            weight=self.settings.weight,
            mine=self.mine,
            others=self.others(now),
            width=self.settings.max_concurrent,
            expected_s=self.pace.expected_s(now),
            failing=self.pace.failing(now),
            tried=self.pace.attempts,
        )

    def others(self, now: float) -> int:
        """Requests of other clients in the server, as it told lately: its count less what was ours then."""
        if self._busy is None or now - self._busy[0] > BUSY_S:
            return 0
        _, busy, mine = self._busy
        return max(0, busy.running + busy.waiting - mine)

    def model(self, wanted: str) -> ModelInfo | None:
        """What the backend calls the model, or None when it lacks it. Ollama takes a name without ":latest"."""
        if not self.status.models and not self.status.any_model:
            return None
        if wanted in self.settings.aliases:
            own = self.settings.aliases[wanted]
            return next((model for model in self.status.models if model.name == own), ModelInfo(own))
        for model in self.status.models:
            if model.name == wanted or (self.kind == "ollama" and model.name == f"{wanted}:latest"):
                return model
        return ModelInfo(wanted) if self.status.any_model else None

    def offers(self, request: GenerateRequest) -> bool:
        if not self.settings.images and any(message.shows for message in request.messages):
            return False
        return request.model is None or self.model(request.model) is not None

    def facts(self, now: float) -> dict[str, Any]:
        """For `shoal providers`."""
        pace, state = self.pace, self.breaker.state(now)
        found: dict[str, Any] = {
            "name": self.name,
            "kind": self.kind if self._kind_known else "unknown",
            "state": state,
            "weight": self.settings.weight,
            **self.provider.gate.facts(),
            "others": self.others(now),
            "answers": pace.answers,
            "failures": pace.failures,
            "failing": round(pace.failing(now), 3),
            "first_token_ms": None if pace.first_token_s is None else round(pace.first_token_s * 1000, 1),
            "tokens_per_s": None if pace.tokens_per_s is None else round(pace.tokens_per_s, 1),
            "models": [model.name for model in self.status.models],
            "version": self.version,
            "reason": self.breaker.reason if state != "up" else "",
        }
        return found

    # -- checks ------------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Checks the backend again and again, until cancelled: often while it is down, else every `check_s`."""
        again_s, failed = self.settings.check_s, 0
        while True:
            failed = 0 if await self.check() else failed + 1
            self.looked.set()
            await trio.sleep(again_s if not failed else min(again_s, again_s / 16 * 2.0 ** min(failed, 8)))

    async def check(self) -> bool:
        """Asks the server how it is; nothing that it would charge for. True when it is well."""
        fault, hard = f"did not answer a check within {CHECK_S:g} s", False
        with trio.move_on_after(CHECK_S):
            try:
                await self._look()
                fault = ""
            except ProviderError as error:
                fault, hard = error.message, True
            except ValueError as error:
                fault, hard = str(error), True
        was = self.breaker.state(trio.current_time())
        self.breaker.checked(trio.current_time(), fault, hard=hard, again_s=self.settings.check_s)
        state = self.breaker.state(trio.current_time())
        if fault and not self.status.models:
            self.status = Status(ready=False, reason=fault)
        if state != was:
            log.info("backend %s is %s%s", self.name, state.replace("_", "-"), f": {fault}" if fault else "")
        return not fault

    async def _look(self) -> None:
        """Raises ProviderError or ValueError with what is wrong."""
        await self._learn_kind()
        if (path := server_kinds.HEALTH.get(self.kind)) is not None:
            status, _ = await self._get(path)
            if status == 503:
                raise ProviderError(ErrorKind.OVERLOADED, "it is still loading its model")
            if status != 200:
                raise ProviderError(ErrorKind.UPSTREAM, f"its {path} answers HTTP {status}")
        # Where /models is all there is to ask, it must be asked now; what a server with more lists may be kept a while.
        found = await (self.provider.probe() if self.kind in server_kinds.HEALTH else self.provider.renew())
        if self.kind == "ollama":
            found = await self._with_tags(found)
        if not found.ready:
            raise ProviderError(ErrorKind.UPSTREAM, found.reason)
        self.status = self._with_aliases(found)
        await self._learn_version()
        await self._learn_load()

    async def _learn_kind(self) -> None:
        """Once: by the list of models, else by Ollama's own path."""
        if self._kind_known:
            return
        base = self.settings.base_url.rstrip("/")
        status, body = await self.provider.look_up(f"{base}/models")
        kind = server_kinds.kind_of(body) if status == 200 else None
        if kind is None:
            status, body = await self._get("/api/version")
            kind = "ollama" if status == 200 and server_kinds.version_of(body) is not None else "openai"
        self.kind, self._kind_known = kind, True

    async def _with_tags(self, found: Status) -> Status:
        """Ollama's installed models, which older ones list only here."""
        if self.settings.models:
            return found
        status, body = await self._get(server_kinds.TAGS)
        if status != 200:
            return found
        names = server_kinds.tags_of(body)
        if not names:
            return Status(ready=False, reason="no model is installed; run: ollama pull MODEL")
        known = {model.name: model for model in found.models}
        length = self.settings.context_length
        models = tuple(known.get(name) or ModelInfo(name, length) for name in names)
        return msgspec.structs.replace(found, ready=True, reason="", models=models, default_model=names[0])

    def _with_aliases(self, found: Status) -> Status:
        """What callers may ask for; the alias of a default model is the default."""
        lengths = {model.name: model.context_length for model in found.models}
        aliases = self.settings.aliases
        more = tuple(ModelInfo(name, lengths.get(own)) for name, own in aliases.items() if name not in lengths)
        default = next((name for name, own in aliases.items() if own == found.default_model), found.default_model)
        return msgspec.structs.replace(found, models=(*more, *found.models), default_model=default)

    async def _learn_version(self) -> None:
        path = server_kinds.VERSION.get(self.kind)
        if path is not None and not self.version:
            with contextlib.suppress(ProviderError):
                status, body = await self._get(path)
                self.version = (server_kinds.version_of(body) or "") if status == 200 else ""

    async def _learn_load(self) -> None:
        """How busy the server says it is; most do not, and that is no fault."""
        path = server_kinds.METRICS.get(self.kind)
        if path is None:
            return
        with contextlib.suppress(ProviderError):
            status, body = await self.provider.look_up(f"{self._root}{path}", METRICS_BYTES)
            busy = server_kinds.busy_of(self.kind, body.decode(errors="replace")) if status == 200 else None
            self._busy = None if busy is None else (trio.current_time(), busy, self.mine)

    async def _get(self, path: str) -> tuple[int, bytes]:
        return await self.provider.look_up(f"{self._root}{path}", _SMALL)
