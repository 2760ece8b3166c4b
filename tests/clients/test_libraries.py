"""Libraries and small commands, unchanged, against a real node: each as its users write it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.clients.conftest import CLIENTS, python, run
from tests.e2e.node_process import NodeProcess

pytestmark = pytest.mark.clients

OPENAI = """
from openai import OpenAI
c = OpenAI(base_url=BASE + "/v1", api_key="none")
hot = [{"role": "user", "content": "one two"}]
assert {"echo", "caller"} <= {m.id for m in c.models.list()}
assert c.models.retrieve("echo").id == "echo"
assert c.chat.completions.create(model="echo", messages=hot).choices[0].message.content == "ECHO<one two>"
stream = c.chat.completions.create(model="echo", messages=hot, stream=True, stream_options={"include_usage": True})
chunks = list(stream)
assert "".join(x.choices[0].delta.content or "" for x in chunks if x.choices) == "ECHO<one two>"
assert chunks[-1].usage.total_tokens > 0
tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
called = c.chat.completions.create(model="caller", messages=hot, tools=tools, tool_choice="auto").choices[0]
assert called.finish_reason == "tool_calls" and called.message.tool_calls[0].function.name
assert len(c.chat.completions.create(model="echo", messages=hot, n=2).choices) == 2
assert c.completions.create(model="echo", prompt="x").choices[0].text == "ECHO<x>"
r = c.responses.create(model="echo", input="hello")
assert r.output_text == "ECHO<hello>"
with c.responses.stream(model="caller", input="hello", tools=[
    {"type": "function", "name": "get_weather", "parameters": {"type": "object"}, "strict": False}]) as s:
    final = s.get_final_response()
assert final.output[-1].type == "function_call", final
print("done")
"""

ANTHROPIC = """
from anthropic import Anthropic
c = Anthropic(base_url=BASE, api_key="none")
hot = [{"role": "user", "content": "one two"}]
m = c.messages.create(model="echo", max_tokens=50, messages=hot)
assert m.content[0].text == "ECHO<one two>" and m.stop_reason == "end_turn", m
with c.messages.stream(model="echo", max_tokens=50, messages=hot, system="Be brief.") as s:
    assert "".join(s.text_stream) == "ECHO<one two>"
    assert s.get_final_message().usage.output_tokens > 0
tools = [{"name": "get_weather", "input_schema": {"type": "object"}}]
for make in (False, True):
    if make:
        with c.messages.stream(model="caller", max_tokens=50, messages=hot, tools=tools) as s:
            m = s.get_final_message()
    else:
        m = c.messages.create(model="caller", max_tokens=50, messages=hot, tools=tools)
    call = next(b for b in m.content if b.type == "tool_use")
    assert m.stop_reason == "tool_use" and isinstance(call.input, dict) and call.input, m
t = c.messages.create(model="thinker", max_tokens=50, messages=hot)
assert [b.type for b in t.content] == ["thinking", "text"], t
print("done")
"""

LANGCHAIN = """
from langchain_openai import ChatOpenAI
from langchain_core.tools import tool
@tool
def get_weather(city: str) -> str:
    "The weather."
    return "rain"
m = ChatOpenAI(model="echo", base_url=BASE + "/v1", api_key="none")
assert m.invoke("one two").content == "ECHO<one two>"
assert "".join(c.content for c in m.stream("one two")) == "ECHO<one two>"
called = ChatOpenAI(model="caller", base_url=BASE + "/v1", api_key="none").bind_tools([get_weather]).invoke("x")
assert called.tool_calls, called
print("done")
"""

LITELLM = """
import litellm
litellm.telemetry = False
hot = [{"role": "user", "content": "one two"}]
how = dict(model="openai/echo", api_base=BASE + "/v1", api_key="none", messages=hot)
assert litellm.completion(**how).choices[0].message.content == "ECHO<one two>"
said = "".join(c.choices[0].delta.content or "" for c in litellm.completion(**how, stream=True))
assert said == "ECHO<one two>", said
how = dict(model="anthropic/echo", api_base=BASE, api_key="none", messages=hot, max_tokens=50)
assert litellm.completion(**how).choices[0].message.content == "ECHO<one two>"
print("done")
"""


@pytest.mark.parametrize(
    "script", [OPENAI, ANTHROPIC, LANGCHAIN, LITELLM], ids=["openai", "anthropic", "langchain", "litellm"]
)
def test_a_python_library_works_unchanged(script: str, node: NodeProcess, tmp_path: Path) -> None:
    told = python(script, node, tmp_path, LITELLM_LOCAL_MODEL_COST_MAP="True", LANGSMITH_TRACING="false")
    assert told.out.strip().endswith("done"), str(told)


NODE_JS = """
import OpenAI from "openai";
const c = new OpenAI({ baseURL: process.env.BASE + "/v1", apiKey: "none" });
const messages = [{ role: "user", content: "one two" }];
const whole = await c.chat.completions.create({ model: "echo", messages });
let said = "";
for await (const x of await c.chat.completions.create({ model: "echo", messages, stream: true }))
  said += x.choices[0]?.delta?.content ?? "";
const called = await c.chat.completions.stream({ model: "caller", messages, tools: [
  { type: "function", function: { name: "get_weather", parameters: { type: "object" } } } ] }).finalChatCompletion();
const response = await c.responses.create({ model: "echo", input: "one two" });
const [first, call] = [whole.choices[0], called.choices[0]];
console.log(JSON.stringify([first.message.content, said, call.finish_reason, response.output_text]));
"""


def test_openais_package_for_node_js(node: NodeProcess, tmp_path: Path) -> None:
    if not (CLIENTS / "node_modules/openai").exists():
        pytest.fail("not installed: run tests/clients/install.sh (make clients does)")
    (tmp_path / "node_modules").symlink_to(CLIENTS / "node_modules")
    script = tmp_path / "ask.mjs"
    script.write_text(NODE_JS)
    told = run("node", script, home=tmp_path, BASE=node.rpc)
    assert told.code == 0, str(told)
    assert json.loads(told.out) == ["ECHO<one two>", "ECHO<one two>", "tool_calls", "ECHO<one two>"]


def test_the_llm_command(node: NodeProcess, tmp_path: Path) -> None:
    llm = CLIENTS / "venv/bin/llm"
    if not llm.exists():
        pytest.fail("not installed: run tests/clients/install.sh (make clients does)")
    models = [{"model_id": "echo", "model_name": "echo", "api_base": f"{node.rpc}/v1"}]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models))  # JSON is YAML
    for how in ((), ("--no-stream",)):
        told = run(llm, "-m", "echo", "--key", "none", *how, "one two", home=tmp_path, LLM_USER_PATH=str(tmp_path))
        assert told.out.strip() == "ECHO<one two>", str(told)


def test_curl(node: NodeProcess, tmp_path: Path) -> None:
    body = json.dumps({"model": "echo", "messages": [{"role": "user", "content": "one two"}]})
    json_type = ("-H", "content-type: application/json")
    whole = run("curl", "-sS", f"{node.rpc}/v1/chat/completions", *json_type, "-d", body, home=tmp_path)
    assert json.loads(whole.out)["choices"][0]["message"]["content"] == "ECHO<one two>"
    streamed = json.dumps({**json.loads(body), "stream": True})
    told = run("curl", "-sSN", f"{node.rpc}/v1/chat/completions", *json_type, "-d", streamed, home=tmp_path)
    assert told.out.rstrip().endswith("data: [DONE]")
    long = tmp_path / "long.json"
    long.write_text(json.dumps({"model": "echo", "messages": [{"role": "user", "content": "x" * 2_000_000}]}))
    posted = run("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", *json_type, "-H", "transfer-encoding: chunked",
                 "--data-binary", f"@{long}", f"{node.rpc}/v1/chat/completions", home=tmp_path)  # fmt: skip
    assert posted.out == "200", posted
    head = run("curl", "-sS", "-I", f"{node.rpc}/v1/models", home=tmp_path)
    assert head.out.startswith("HTTP/1.1 200")
