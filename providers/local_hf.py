"""The local model: transformers and torch, or llama.cpp, in a worker process, many requests at once.

This file says what is offered and what is refused. When a worker runs is decided in `hf_worker/keeper.py`, what is
said to it in `hf_worker/link.py`, where the weights come from in `weights.py`. Neither torch nor transformers is ever
imported by any of them.

    provider = build("local_hf", Settings(), BuildContext(data_dir=..., environ=os.environ))
    async with provider.running():
        async with provider.generate(GenerateRequest.of("What is the opposite of hot?")) as events:
            async for event in events: ...

What a request leaves open: `max_tokens` is the setting of that name; `temperature` and `top_p` are the model's own
(its generation_config.json; SmolLM2's asks for no sampling, so it is greedy). Temperature 0 gives the same answer each
time, and so does a seed. A request that leaves both open counts as sampled, whatever the model's default is.
Usage counts the tokens of the answer without the one that ends it; for a continued answer, those that were added.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import trio

from . import gguf_header, weights
from .base import (
    Capabilities,
    ErrorKind,
    Event,
    GenerateRequest,
    ModelInfo,
    Provider,
    ProviderError,
    Status,
)
from .embedding import Embeddings, EmbedRequest, pack
from .faults import SettingsError
from .gate import Gate
from .hf_worker import engine_choice, frames
from .hf_worker.link import WorkerLink, worker_command, worker_environ
from .hf_worker.shelf import Shelf
from .options import settle, told
from .settings import BuildContext, ProviderSettings

PROBE_S = 5.0
"""Seconds for which a probe's finding is kept."""
PROBABILITIES = frozenset({"logprobs", "top_logprobs"})
HONOURS = frozenset({"max_tokens", "temperature", "top_p", "stop", "seed"}) | PROBABILITIES
"""The options of a request that reach the model."""
WRITES = Capabilities(streams=True, continues=True, seeds=True, logprobs=True, embeds=False)
ENCODES = Capabilities(streams=False, writes=False, embeds=True)
CALIBRATED = ".threads.json"
"""In the store of models: how many threads were best for each."""
GGUF_POSITIONS = 16384
"""Positions that llama.cpp gets when nothing else is said."""
TRIALS_S = 900.0
"""Seconds that timing the engines of a model may take."""
MOST_LOGPROBS = 20
"""Likeliest tokens that may be asked for at each place, as in OpenAI's API."""
LIBRARIES = ("torch", "transformers", "safetensors")
ENGINES = {"torch": "transformers", "llama_cpp": "llama-cpp-python"}
"""Engine -> the package whose version is told."""


class Settings(ProviderSettings, kw_only=True, forbid_unknown_fields=True):
    """`[providers.local_hf]`."""

    model: str = ""
    """A name (`smollm2`), or the path of a folder of safetensors. Empty: what `shoal models use` chose, or smollm2."""
    models_dir: str | None = None
    """Where installed models lie; default: the environment's SHOAL_MODELS_DIR, or the user's cache folder."""
    preload: bool = False
    """Load the model when the node starts, and not at the first request."""
    engine: Literal["auto", "torch", "graphs", "paged", "slots", "llama_cpp"] = "auto"
    """What computes: torch, or llama.cpp (`pip install 'shoal[llama-cpp]'`), which takes models that came as a GGUF.
    auto: what `shoal models calibrate` found fastest; else llama.cpp where it is installed and the model has one,
    unless dtype or device ask for what only torch does. graphs, paged and slots are ways of batching what transformers
    loads; of these torch takes the fastest on this device."""
    threads: int = 0
    """Threads of the worker; 0 finds the best number in one second of trials, when it is idle, and keeps it on disk."""
    dtype: str = "auto"
    """int4, float32, bfloat16, or auto: packed weights where the model has them, else what computes fast here."""
    device: str = "auto"
    """cpu, cuda (the one with most free memory), cuda:1, mps, or auto."""
    max_tokens: int = 1024
    """Tokens of an answer when the request does not say."""
    encoder: str = weights.ENCODER
    """The model that makes embeddings (`shoal models add minilm`)."""
    memory_mb: int = 0
    """Megabytes that the models loaded at the same time may take together; 0: three quarters of this machine's."""
    kv_tokens: int = 0
    """Positions kept in memory for all running requests together (46 kB each for SmolLM2 in fp32); 0: 16,384 on a CPU,
    and on a GPU as many as four fifths of its free memory hold, 131,072 at most."""
    load_s: float = 300.0
    """Seconds that loading may take."""
    template_s: float = 2.0
    """Seconds that the model's chat template, a program of its author, may take for a request."""
    hang_s: float = 20.0
    """Seconds of silence while requests run after which the worker is killed."""
    idle_unload_s: float = 900.0
    """Seconds without a request after which the worker ends and gives its memory back; 0 keeps it."""


class LocalHf(Provider):
    """See the module. worker: the command that starts a worker (a test starts a fake one)."""

    runs_here = True
    completes = True

    def __init__(
        self,
        name: str,
        settings: Settings,
        *,
        models_dir: Path,
        environ: Mapping[str, str],
        worker: Callable[[], list[str]] = worker_command,
    ) -> None:
        self.name = name
        self._settings, self._models_dir, self._environ, self._command = settings, models_dir, environ, worker
        self._gate = Gate(
            name, running=settings.max_concurrent, waiting=settings.max_queue, patience_s=settings.queue_s
        )
        self._shelf = Shelf(
            name,
            self._find,
            self._prepare,
            idle_unload_s=settings.idle_unload_s,
            budget_bytes=settings.memory_mb * 1_000_000,
            patience_s=settings.queue_s,
        )
        self._model = settings.model or weights.chosen(models_dir)
        self._default, self._encoder = weights.canonical(self._model), weights.canonical(settings.encoder)
        self.keeper = self._shelf.keeper(self._default)
        """The worker of the default model."""
        self._probed: tuple[float, Status] | None = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self._shelf.running():
            if self._settings.preload:
                self.keeper.preload()
            yield

    # -- what it offers --------------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        return self._gate.facts()

    async def probe(self) -> Status:
        now = trio.current_time()
        if self._probed is None or now >= self._probed[0]:
            if not self._settings.model:
                self._follow(await trio.to_thread.run_sync(weights.chosen, self._models_dir))
            self._probed = (now + PROBE_S, await trio.to_thread.run_sync(self._look))
            if self._probed[1].ready:
                self._shelf.keep({model.name for model in self._probed[1].models})
        status = self._probed[1]
        if status.ready and (reason := self.keeper.pause_reason()):
            return msgspec.structs.replace(status, ready=False, reason=reason)
        link = self.keeper.link
        computes = link.info.computes if link is not None and link.info is not None else ""
        return msgspec.structs.replace(
            status,
            models=tuple(self._rated(model) for model in status.models),
            version=f"{status.version} ({computes})" if computes else status.version,
        )

    def _follow(self, model: str) -> None:
        """`shoal models use` has chosen another one: requests that name none get it from now on."""
        if model != self._model:
            self._model, self._default = model, weights.canonical(model)
            self.keeper = self._shelf.keeper(self._default)

    def _rated(self, model: ModelInfo) -> ModelInfo:
        """With the rates that its worker has measured, if there is one."""
        link = self._shelf.keeper(model.name).link if model.name in self._shelf else None
        if link is None or link.rates is None:
            return model
        rates = link.rates
        return msgspec.structs.replace(
            model, decode_tps=rates.decode_tps or None, prefill_tps=rates.prefill_tps or None
        )

    def _look(self) -> Status:
        """What the disk says of the libraries and the weights; takes some milliseconds."""
        try:
            found = weights.resolve(self._model, self._models_dir)
            engine = engine_of(self._settings, found, self._fastest(found))
        except weights.WeightsError as fault:
            lacks = "" if weights.llama_cpp_installed() else missing_libraries()
            return Status(ready=False, reason=lacks or str(fault))
        except ProviderError as fault:
            return Status(ready=False, reason=fault.message)
        installed = weights.installed(self._models_dir)
        writing = [found, *(each for each in installed if not each.encoder and each.name != found.name)]
        encoders = sorted((each for each in installed if each.encoder), key=lambda each: each.name != self._encoder)
        return Status(
            ready=True,
            models=tuple(
                ModelInfo(m.name, m.context_length, ENCODES if m.encoder else WRITES) for m in (*writing, *encoders)
            ),
            default_model=found.name,
            version=" ".join((ENGINES[engine].replace("-python", ""), importlib.metadata.version(ENGINES[engine]))),
        )

    # -- requests --------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def generate(self, request: GenerateRequest) -> AsyncIterator[AsyncIterator[Event]]:
        request, dropped = settle(self._accept(request), HONOURS, self._settings.unsupported, self.name)
        kept = {name: value for name, value in request.extra.items() if name in PROBABILITIES}
        request = msgspec.structs.replace(request, extra=kept, response_format=None)  # the rest changes no answer
        keeper = await self._shelf.kept(await self._chosen(request.model, self._default, encoder=False))
        async with self._gate, keeper.worker() as link:
            call = link.begin(request)
            try:
                yield told(dropped, call)
            finally:
                link.leave(call)

    async def count(self, request: GenerateRequest) -> int | None:
        """See counting.py. By the model's own tokenizer and chat template, in its worker, which is loaded for it."""
        if not_offered(request):
            return None
        try:
            keeper = await self._shelf.kept(await self._chosen(request.model, self._default, encoder=False))
            async with keeper.worker() as link:
                call = link.begin_count(msgspec.structs.replace(request, extra={}))
                try:
                    return await call.tokens()
                finally:
                    link.leave(call)
        except ProviderError:
            return None

    def _accept(self, request: GenerateRequest) -> GenerateRequest:
        """The request as the worker gets it. Raises ProviderError for what is not offered here."""
        if refusal := not_offered(request):
            raise ProviderError(ErrorKind.BAD_REQUEST, refusal)
        if request.completion is not None and request.completion.best_of is not None:
            message = "the local model writes one text for a request; leave best_of out, or ask for n choices"
            raise ProviderError(ErrorKind.UNSUPPORTED, message)
        max_tokens = self._settings.max_tokens if request.max_tokens is None else request.max_tokens
        return msgspec.structs.replace(request, max_tokens=max_tokens)

    async def _chosen(self, asked: str | None, default: str, *, encoder: bool) -> str:
        """The name of the model that a request gets. Raises ProviderError for one that is not on offer."""
        name = default if asked is None else weights.canonical(asked)
        own = (self._model, self._settings.encoder)
        if asked is not None and weights.is_path(asked) and asked not in own:
            # A caller names models, and never folders of this machine.
            raise ProviderError(ErrorKind.UNAVAILABLE, f"{self.name} has no model of this name")
        if name == default and not encoder:
            return name
        found = await self._find(name)
        if found.encoder != encoder:
            does = "writes no text, it makes embeddings" if found.encoder else "makes no embeddings"
            raise ProviderError(ErrorKind.UNAVAILABLE, f'"{name}" {does}; leave model out, or ask for another')
        return name

    def _fastest(self, found: weights.WeightsDir) -> str:
        """The engine that `shoal models calibrate` found fastest on this machine's processor; empty: not timed."""
        of = engine_choice.key(found.name, self._settings.dtype, "cpu")
        return engine_choice.known(self._models_dir / engine_choice.FILE, of) or ""

    async def _find(self, name: str) -> weights.WeightsDir:
        """The weights of a model. Raises ProviderError when there is nothing to load."""
        wanted = self._model if name == self._default else name
        try:
            found = await trio.to_thread.run_sync(weights.resolve, wanted, self._models_dir)
        except weights.WeightsError as fault:
            raise ProviderError(ErrorKind.UNAVAILABLE, str(fault)) from None
        if engine_of(self._settings, found, self._fastest(found)) == "llama_cpp":
            return weights.by_llama_cpp(found, self._settings.kv_tokens)
        return found

    async def _prepare(self, found: weights.WeightsDir) -> WorkerLink:
        """The link to a worker that is about to start."""
        engine = engine_of(self._settings, found, self._fastest(found))
        if engine == "llama_cpp" and found.gguf is not None:
            await trio.to_thread.run_sync(_check_gguf, found.gguf)
        return self._link(found, engine)

    def _link(self, found: weights.WeightsDir, engine: str, *, trials: bool = False) -> WorkerLink:
        settings = self._settings
        load = frames.Load(
            name=found.name,
            path=str(found.gguf if engine == "llama_cpp" else found.path),
            threads=settings.threads,
            dtype=settings.dtype,
            device=settings.device,
            kv_tokens=settings.kv_tokens or (GGUF_POSITIONS if engine == "llama_cpp" else 0),
            embeds=found.encoder,
            engine=settings.engine if engine == "torch" and settings.engine in engine_choice.ENGINES else engine,
            calibrated=str(self._models_dir / CALIBRATED),
            template_s=settings.template_s,
            trials=trials,
        )
        environ = worker_environ(self._environ, settings.threads, engine)
        load_s = max(settings.load_s, TRIALS_S) if trials else settings.load_s
        return WorkerLink(self._command(), environ, load, folder=found.path, load_s=load_s, hang_s=settings.hang_s)

    async def time_engines(self, name: str) -> tuple[dict[str, dict[int, float]], str]:
        """Engine -> streams -> tokens per second of each that takes the model here, and the choice, kept on disk.

        Raises ProviderError when the model, or what computes it, is not there.
        """
        found = await self._find(weights.canonical(name) if name else self._default)
        engines = ["torch"] if found.plain and not missing_libraries() else []
        if found.gguf is not None and weights.llama_cpp_installed():
            await trio.to_thread.run_sync(_check_gguf, found.gguf)
            engines.append("llama_cpp")
        about, rates, why = "cpu", dict[str, dict[int, float]](), missing_libraries()
        for engine in engines:
            link = self._link(found, engine, trials=True)
            await link.run()
            if link.timed is None:
                why = link.lost or ""
                continue
            rates |= link.timed.rates
            about = link.timed.about if engine == "torch" else about
        if not rates:
            raise ProviderError(ErrorKind.UNAVAILABLE, why or f"nothing computes {found.name} here")
        of = engine_choice.key(found.name, self._settings.dtype, about)
        chosen = engine_choice.best(rates, "llama_cpp" if "llama_cpp" in rates else "lean")
        file = self._models_dir / engine_choice.FILE
        await trio.to_thread.run_sync(engine_choice.write, file, of, rates, chosen)
        return rates, chosen or ""

    # -- embeddings ------------------------------------------------------------------------------------------

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """See embedding.py. By the model that is asked for, or the configured encoder."""
        if request.dimensions is not None:
            raise ProviderError(
                ErrorKind.UNSUPPORTED, "the local encoder makes vectors of one length; leave out dimensions"
            )
        texts = [text for text in request.inputs if isinstance(text, str)]
        if len(texts) != len(request.inputs):
            raise ProviderError(ErrorKind.UNSUPPORTED, "the local encoder takes texts; send no token ids")
        if not texts or not all(texts):
            raise ProviderError(ErrorKind.BAD_REQUEST, "input is empty; send at least one text with something in it")
        name = await self._chosen(request.model, self._encoder, encoder=True)
        keeper = await self._shelf.kept(name)
        async with self._gate, keeper.worker() as link:
            call = link.begin_embedding(texts)
            try:
                found = await call.vectors()
            finally:
                link.leave(call)
        return Embeddings(vectors=tuple(pack(each) for each in found.vectors), model=name, tokens=found.tokens)


def not_offered(request: GenerateRequest) -> str:
    """Why the local model cannot serve this request, with what to do instead; empty when it can."""
    completion = request.completion
    if not request.messages and completion is None:
        return "messages is empty; send at least one message"
    if request.n != 1:
        return f"n is 1 here, not {request.n}; ask several times for several answers"
    if request.has_tools:
        return "the local model does not call tools; leave tools out, or ask a provider that offers them"
    if any(m.shows for m in request.messages):
        return "the local model reads text only; leave images and files out, or ask a provider that takes them"
    if completion is not None and completion.echo and request.prefix:
        return "an answer that begins with its prompt is not gone on with; ask for it anew"
    says_prompt = completion is not None and completion.echo
    if request.max_tokens is not None and request.max_tokens < (0 if says_prompt else 1):
        return f"max_tokens is {request.max_tokens}; an answer needs at least 1"
    top = request.extra.get("top_logprobs")
    if top is not None and (type(top) is not int or not 0 <= top <= MOST_LOGPROBS):
        return f"top_logprobs is a whole number from 0 to {MOST_LOGPROBS}"
    if top and not request.extra.get("logprobs"):
        return "top_logprobs needs logprobs: true beside it"
    return ""


def _check_gguf(file: Path) -> None:
    """What llama.cpp would believe of a file is compared with the file first. Raises ProviderError."""
    try:
        gguf_header.check(file)
    except gguf_header.HeaderError as fault:
        raise ProviderError(ErrorKind.UNAVAILABLE, f"{file.name} cannot be loaded: {fault}; get it again") from None
    except OSError as fault:
        raise ProviderError(ErrorKind.UNAVAILABLE, f"{file.name} cannot be read ({fault.strerror})") from None


def engine_of(settings: Settings, found: weights.WeightsDir, fastest: str = "") -> Literal["torch", "llama_cpp"]:
    """What computes this model here. fastest: the engine that was found so. Raises ProviderError when nothing can."""
    only_torch = (
        settings.dtype != "auto" or settings.device.startswith(("cuda", "mps")) or fastest not in ("", "llama_cpp")
    )
    wanted = settings.engine if settings.engine != "auto" else "torch" if found.plain and only_torch else "llama_cpp"
    if wanted == "llama_cpp" and found.gguf is not None and weights.llama_cpp_installed():
        return "llama_cpp"
    lacks = "" if weights.llama_cpp_installed() else "llama.cpp is not installed; run: pip install 'shoal[llama-cpp]'"
    if settings.engine == "llama_cpp" and not found.encoder:
        reason = lacks or f'{found.name} came without a GGUF, which llama.cpp needs; add one, or set engine = "auto"'
        raise ProviderError(ErrorKind.UNAVAILABLE, reason)
    if not found.plain:
        reason = lacks or f'{found.name} is a GGUF, which only llama.cpp computes; set engine = "auto"'
        raise ProviderError(ErrorKind.UNAVAILABLE, reason)
    if missing := missing_libraries():
        raise ProviderError(ErrorKind.UNAVAILABLE, missing)
    return "torch"


def missing_libraries() -> str:
    """Which libraries the local model lacks, with the command to type; empty when all are here. Imports none."""
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if not missing:
        return ""
    verb = "are" if len(missing) > 1 else "is"
    return f"{' and '.join(missing)} {verb} not installed; run: pip install 'shoal[local]'"


def build(name: str, settings: Settings, context: BuildContext) -> LocalHf:
    """The provider for a node. Raises SettingsError for a value that cannot be used."""
    for key in ("threads", "idle_unload_s", "memory_mb", "kv_tokens"):
        if getattr(settings, key) < 0:
            raise SettingsError(key, "is below 0", "write 0 or more")
    for key in ("max_concurrent", "max_tokens", "load_s", "template_s", "hang_s"):
        if getattr(settings, key) <= 0:
            raise SettingsError(key, "is not above 0", "write a positive number, or leave it out")
    models_dir = weights.models_dir(context.environ, settings.models_dir)
    return LocalHf(name, settings, models_dir=models_dir, environ=context.environ)
