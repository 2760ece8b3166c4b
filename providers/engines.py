"""Inference engines that run on this machine already: what answers at an address, told by what only it says of itself.

A port proves nothing, so every address is asked the same harmless questions (all GET, none costs a token) and is taken
for an engine only by its own answers:

    Ollama      `/` says "Ollama is running", and /api/version tells which        (ollama/docs/api.md)
    llama.cpp   its models are owned by "llamacpp"; the build stands in /props     (llama.cpp, tools/server/README.md);
                its Python server names itself in /openapi.json, and is asked no more: its answers break off when
                somebody asks for its models meanwhile (llama-cpp-python 0.3.36, `interrupt_requests`)
    vLLM        its models are owned by "vllm"; /version                           (vllm/entrypoints/openai)
    SGLang      /get_model_info, or models owned by "sglang"; /get_server_info     (sglang, native APIs)
    LM Studio   /api/v0/models, with the state of each model                       (lmstudio.ai/docs/app/api)

A Shoal node lists other engines' models as well; it is known by its own page and passed over.

    found = await look(("127.0.0.1:11434", "127.0.0.1:8080"), timeout_s=1.0)
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

import msgspec
import trio
from msgspec import Struct

from ..protocols.http.client import Client, ClientError
from .backend_manager.server_kinds import Kind

QUESTIONS = (
    *("/", "/openapi.json", "/v1/models", "/shoal/v1/status", "/api/version", "/api/tags", "/props", "/version"),
    *("/get_model_info", "/get_server_info", "/api/v0/models"),
)
MAX_ANSWER_BYTES = 1024 * 1024
MAX_MODELS = 200
MAX_NAME_CHARS = 300
_AT_ONCE = 4  # connections to one address


class Engine(NamedTuple):
    """title: its name for people. start: the command that starts one. kind: how the backend manager checks it.

    keys: what else its table in the configuration needs; all but Ollama and LM Studio end what was begun elsewhere.
    """

    title: str
    start: str
    kind: Kind
    keys: Mapping[str, Any] = {}


_GO_ON = {"continues": True, "continue_fields": {"add_generation_prompt": False, "continue_final_message": True}}

_ONE_AT_A_TIME = {"max_concurrent": 1, "models_ttl_s": 86_400}

ENGINES: dict[str, Engine] = {
    "ollama": Engine("Ollama", "ollama serve", "ollama"),
    "llama_cpp": Engine("llama.cpp", "llama-server -m MODEL.gguf", "llama_cpp", {"continues": True}),
    "vllm": Engine("vLLM", "vllm serve MODEL", "vllm", _GO_ON),
    "sglang": Engine("SGLang", "python -m sglang.launch_server --model-path MODEL", "sglang", _GO_ON),
    "lm_studio": Engine("LM Studio", "lms server start", "lm_studio"),
}
_OTHER_NAMES = {"llama.cpp": "llama_cpp", "llamacpp": "llama_cpp", "llama_server": "llama_cpp", "lmstudio": "lm_studio"}


def canonical(name: str) -> str | None:
    """The engine that a name means; None when it is none."""
    plain = name.strip().lower().replace("-", "_").replace(" ", "_")
    plain = _OTHER_NAMES.get(plain, plain)
    return plain if plain in ENGINES else None


class Found(Struct, frozen=True, kw_only=True):
    """An engine that answers. address: HOST:PORT. needs_key: it told no models, because it wants a key first.

    models: empty where asking would do harm.
    """

    engine: str
    address: str
    version: str = ""
    models: tuple[str, ...] = ()
    needs_key: bool = False
    kind: Kind = "auto"

    @property
    def keys(self) -> dict[str, Any]:
        """Its table in the configuration."""
        more = _ONE_AT_A_TIME if self.kind == "llama_cpp_python" else ENGINES[self.engine].keys
        return {"base_url": self.base_url, "kind": self.kind, **more}

    @property
    def title(self) -> str:
        return " ".join(part for part in (ENGINES[self.engine].title, self.version) if part)

    @property
    def base_url(self) -> str:
        return f"http://{self.address}/v1"


_FORM = re.compile(r"[.-](gguf|i?q\d(-[0-9a-z]+){0,3}|bf16|fp?(16|32)|int[48]|[48]bit|awq|gptq|mlx)$")


def plain_name(model: str) -> str:
    """A model's name without what engines add to it: folders, owner, file type, and how its weights are packed.

    `/m/SmolLM2-135M-Instruct.Q4_1.gguf`, `HuggingFaceTB/SmolLM2-135M-Instruct` and `smollm2-135m-instruct:q8_0` are the
    same model. A tag that tells a size (`smollm2:135m`) stays.
    """
    name = re.split(r"[/\\]", model.strip())[-1].lower()
    name = re.sub(r"[:_ ]", "-", name)
    while (shorter := _FORM.sub("", name)) != name:
        name = shorter
    return name


class Answer(NamedTuple):
    """What a server said to one question."""

    status: int
    body: bytes

    @property
    def json(self) -> Any:
        """The body of a 200 as JSON; None when it is none."""
        if self.status != 200:
            return None
        try:
            return msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None


NOTHING = Answer(0, b"")


def identified(address: str, answers: Mapping[str, Answer]) -> Found | None:
    """The engine that gives these answers (path -> answer); None for anything else."""

    def said(path: str) -> Any:
        return answers.get(path, NOTHING).json

    def field(path: str, *names: str) -> str:
        found = said(path)
        texts = (found.get(name) for name in names) if isinstance(found, dict) else ()
        text = next((text for text in texts if isinstance(text, str)), "")
        return text if len(text) <= 60 and text.isprintable() else ""

    if _is_shoal(answers):
        return None
    listed = _listed(said("/v1/models"))
    models = tuple(listed)[:MAX_MODELS]
    owners = {owner for owner in listed.values() if owner}
    locked = answers.get("/v1/models", NOTHING).status in (401, 403)

    def found(engine: str, version: str, names: tuple[str, ...] = models, kind: Kind | None = None) -> Found:
        needs_key = locked and not names
        return Found(
            engine=engine,
            address=address,
            version=version,
            models=names,
            needs_key=needs_key,
            kind=kind or ENGINES[engine].kind,
        )

    if answers.get("/", NOTHING).body.strip() == b"Ollama is running" and field("/api/version", "version"):
        tags = _names(said("/api/tags"), "models", "name")
        return found("ollama", field("/api/version", "version"), tags or models)
    if "llamacpp" in owners or field("/props", "build_info"):
        return found("llama_cpp", field("/props", "build_info"))
    if "sglang" in owners or field("/get_model_info", "model_path"):
        return found("sglang", field("/get_server_info", "version"))
    if "vllm" in owners or (locked and field("/version", "version")):
        return found("vllm", field("/version", "version"))
    if studio := _studio_models(said("/api/v0/models")):
        return found("lm_studio", "", studio)
    if (version := _python_server(answers)) is not None:
        return found("llama_cpp", f"Python {version}".strip(), kind="llama_cpp_python")
    return None


def _python_server(answers: Mapping[str, Answer]) -> str | None:
    """The version of llama-cpp-python's server; None for anything else."""
    about = answers.get("/openapi.json", NOTHING).json
    info = about.get("info") if isinstance(about, dict) else None
    if not isinstance(info, dict) or "llama.cpp Python API" not in str(info.get("title")):
        return None
    return str(info.get("version") or "")[:40]


def _is_shoal(answers: Mapping[str, Answer]) -> bool:
    status = answers.get("/shoal/v1/status", NOTHING).json
    return (isinstance(status, dict) and "peer_id" in status) or b"<title>Shoal" in answers.get("/", NOTHING).body


def _listed(models: Any) -> dict[str, str]:
    """Model -> who owns it, of a list in OpenAI's form."""
    found: dict[str, str] = {}
    rows = models.get("data") if isinstance(models, dict) else None
    for entry in rows if isinstance(rows, list) else ():
        name = entry.get("id") if isinstance(entry, dict) else None
        if _is_name(name):
            found[name] = str(entry.get("owned_by") or "")
    return found


def _is_name(name: Any) -> TypeGuard[str]:
    """Names come from somebody else's server and go to a terminal and into a configuration."""
    return isinstance(name, str) and 0 < len(name) <= MAX_NAME_CHARS and name.isprintable()


def _names(found: Any, table: str, key: str) -> tuple[str, ...]:
    rows = found.get(table) if isinstance(found, dict) else None
    names = [row.get(key) for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return tuple(name for name in names if _is_name(name))[:MAX_MODELS]


def _studio_models(found: Any) -> tuple[str, ...]:
    """The models that write text, in LM Studio's own list: its entries say what kind they are, and their state."""
    rows = found.get("data") if isinstance(found, dict) else None
    if not isinstance(rows, list) or not rows:
        return ()
    if not all(isinstance(row, dict) and {"id", "type", "state"} <= row.keys() for row in rows):
        return ()
    return tuple(row["id"] for row in rows if row["type"] in ("llm", "vlm") and _is_name(row["id"]))[:MAX_MODELS]


# -- asking ----------------------------------------------------------------------------------------------------


def loopback(address: str) -> tuple[str, int]:
    """HOST and PORT of an address of this machine. ValueError for any other."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f'{address!r} is no address with a port; write one like "127.0.0.1:11434"')
    if host == "localhost":
        return "127.0.0.1", int(port)
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise ValueError(f'{address!r} is not on this machine; write one like "127.0.0.1:11434"')
    return host, int(port)


async def look(addresses: Sequence[str], *, timeout_s: float, without: Sequence[str] = ()) -> list[Found]:
    """The engines at these addresses of this machine, in their order, all asked at once.

    timeout_s: seconds for each of them. without: addresses that are passed over, such as the node's own. ValueError for
    an address elsewhere: nobody else's machine is asked.
    """
    own = {loopback(address) for address in without}
    wanted = {address: loopback(address) for address in addresses}
    wanted = {address: place for address, place in wanted.items() if place not in own}
    found: dict[str, Found] = {}
    client = Client(environ={})  # loopback needs no proxy

    async def ask(address: str) -> None:
        answers: dict[str, Answer] = {}
        with trio.move_on_after(timeout_s):  # what has come by then counts: an engine at work answers slowly
            await _ask(client, address, answers)
        engine = identified(address, answers)
        if engine is not None:
            found[address] = engine

    async with client.running(), trio.open_nursery() as nursery:
        for address in wanted:
            nursery.start_soon(ask, address)
    return [found[address] for address in wanted if address in found]


async def _ask(client: Client, address: str, answers: dict[str, Answer]) -> None:
    limiter = trio.CapacityLimiter(_AT_ONCE)

    async def question(path: str) -> None:
        async with limiter:
            with contextlib.suppress(ClientError):
                async with client.request("GET", f"http://{address}{path}") as response:
                    answers[path] = Answer(response.status, await response.read(MAX_ANSWER_BYTES))

    await question("/")
    if "/" not in answers:  # nobody, or something that speaks no HTTP: it is left alone
        return
    await question("/openapi.json")
    if _python_server(answers) is not None:
        return
    async with trio.open_nursery() as nursery:
        for path in QUESTIONS[2:]:
            nursery.start_soon(question, path)
