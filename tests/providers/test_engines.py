"""Engines that run on this machine: known by what they say, at any port, and nothing else is taken for one."""

from __future__ import annotations

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from shoal.providers.engines import QUESTIONS, Answer, canonical, identified, look, loopback, plain_name

from .fake_engines import PATHS, fake_engine

SAYS = {
    "ollama": ("ollama", "Ollama 0.12.1", ("llama3.2:latest", "qwen3:8b", "gemma3:1b")),
    "llama_cpp": ("llama_cpp", "llama.cpp b6500-abcdef", ("m.gguf",)),
    "llama_cpp_python": ("llama_cpp", "llama.cpp Python 0.3.36", ()),
    "vllm": ("vllm", "vLLM 0.11.0", ("Qwen/Qwen3-8B",)),
    "vllm_with_key": ("vllm", "vLLM 0.11.0", ()),
    "sglang": ("sglang", "SGLang 0.5.3", ("Qwen/Qwen3-8B",)),
    "lm_studio": ("lm_studio", "LM Studio", ("qwen2.5-7b-instruct",)),
}


@pytest.mark.parametrize("name", SAYS)
async def test_an_engine_is_known_by_its_own_answers_at_any_port(name: str) -> None:
    async with fake_engine(name) as address:
        [found] = await look((address,), timeout_s=10)
    assert (found.engine, found.title, found.models) == SAYS[name]
    assert found.base_url == f"http://{address}/v1"
    assert found.needs_key == (name == "vllm_with_key")


@pytest.mark.parametrize("name", ["shoal", "another_api", "a_web_page"])
async def test_what_is_no_engine_is_not_taken_for_one_though_it_lists_models(name: str) -> None:
    async with fake_engine(name) as address:
        assert await look((address,), timeout_s=10) == []


async def test_several_are_asked_at_once_and_keep_their_order() -> None:
    async with fake_engine("vllm") as one, fake_engine("ollama") as two, fake_engine("vllm") as three:
        found = await look((three, two, one), timeout_s=10)
    assert [each.address for each in found] == [three, two, one]


async def test_the_node_does_not_ask_itself() -> None:
    asked: list[str] = []
    async with fake_engine("ollama", asked) as address:
        port = address.rpartition(":")[2]
        assert await look((address,), timeout_s=10, without=(f"127.0.0.1:{port}",)) == []
    assert asked == []


async def test_an_engine_at_work_is_known_by_what_it_answers_in_time() -> None:
    async with fake_engine("llama_cpp", hangs="/props") as address:
        [found] = await look((address,), timeout_s=0.5)
    assert found.models == ("m.gguf",)


async def test_an_engine_that_would_break_off_an_answer_is_not_asked_for_its_models() -> None:
    asked: list[str] = []
    async with fake_engine("llama_cpp_python", asked) as address:
        [found] = await look((address,), timeout_s=10)
    assert asked == ["/", "/openapi.json"]
    assert found.keys == {
        "base_url": f"http://{address}/v1",
        "kind": "llama_cpp_python",
        "max_concurrent": 1,
        "models_ttl_s": 86_400,
    }


async def test_who_never_answers_and_who_speaks_no_http_hold_nobody_up() -> None:
    asked = 0

    async def say_something_else(stream: trio.SocketStream) -> None:
        nonlocal asked
        asked += 1
        await stream.send_all(b"220 mail.example ESMTP\r\n")

    async with trio.open_nursery() as nursery:
        silent = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        other = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        nursery.start_soon(trio.serve_listeners, say_something_else, [other])
        places = [f"127.0.0.1:{each.socket.getsockname()[1]}" for each in (silent, other)]
        async with fake_engine("ollama") as address:
            with trio.fail_after(5):
                found = await look((*places, address), timeout_s=0.5)
        nursery.cancel_scope.cancel()
    assert [each.engine for each in found] == ["ollama"]
    assert asked == 1


@pytest.mark.parametrize("address", ["192.0.2.1:11434", "example.com:80", "127.0.0.1", "127.0.0.1:0", "0.0.0.0:80"])
async def test_no_other_machine_is_ever_asked(address: str) -> None:
    with pytest.raises(ValueError, match="write one like"):
        await look((address,), timeout_s=1)


def test_names_are_taken_as_people_write_them() -> None:
    assert canonical("LM Studio") == canonical("lmstudio") == "lm_studio"
    assert canonical("llama.cpp") == canonical("llama-cpp") == "llama_cpp"
    assert canonical("docker") is None
    assert loopback("[::1]:80") == ("::1", 80)


@given(st.dictionaries(st.sampled_from(QUESTIONS), st.tuples(st.sampled_from([200, 401, 404]), st.binary(max_size=60))))
def test_no_answer_whatever_makes_it_fail(answers: dict[str, tuple[int, bytes]]) -> None:
    identified("127.0.0.1:1", {path: Answer(*answer) for path, answer in answers.items()})


@given(
    st.dictionaries(
        st.sampled_from(QUESTIONS),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["data", "id", "models", "name", "info", "title", "version"]), inner)
            ),
            max_leaves=8,
        ),
    )
)
def test_no_json_whatever_makes_it_fail(answers: dict[str, object]) -> None:
    import msgspec

    identified("127.0.0.1:1", {path: Answer(200, msgspec.json.encode(said)) for path, said in answers.items()})


def test_names_of_models_that_would_move_a_terminal_are_left_out() -> None:
    rows = [{"id": name, "owned_by": "llamacpp"} for name in ("m\x1b[2J", "two\nlines", "x" * 301, "", "fine")]
    answers = {"/v1/models": Answer(200, msgspec.json.encode({"data": rows}))}
    found = identified("127.0.0.1:1", answers)
    assert found is not None
    assert found.models == ("fine",)
    tags = msgspec.json.encode({"models": [{"name": "a\rb"}, {"name": "llama3.2:latest"}]})
    said = {"/": Answer(200, b"Ollama is running"), "/api/version": Answer(200, b'{"version":"0.12"}')}
    found = identified("127.0.0.1:1", {**said, "/api/tags": Answer(200, tags)})
    assert found is not None
    assert found.models == ("llama3.2:latest",)


def test_every_fake_is_tried() -> None:
    assert set(SAYS) | {"shoal", "another_api", "a_web_page"} == set(PATHS)


@pytest.mark.parametrize(
    "name",
    [
        "SmolLM2-135M-Instruct",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "/models/SmolLM2-135M-Instruct-Q4_K_M.gguf",
        "smollm2-135m-instruct:q8_0",
        "C:\\models\\smollm2_135m_instruct.F16.GGUF",
        "smollm2-135m-instruct-awq",
        "mlx-community/SmolLM2-135M-Instruct-4bit",
    ],
)
def test_one_model_has_many_names(name: str) -> None:
    assert plain_name(name) == "smollm2-135m-instruct"


def test_a_size_is_no_form() -> None:
    assert plain_name("smollm2:135m") == "smollm2-135m"
    assert plain_name("smollm2:latest") == "smollm2-latest"
    assert plain_name("qwen3:8b") != plain_name("qwen3:14b")
    assert plain_name("") == ""
