"""What openai-agents and pydantic-ai do for their users, by both of OpenAI's shapes, against the node at BASE."""

# ruff: noqa: PT017, PT018  (these run without pytest)

import asyncio
import os

from agents import Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent as TypedAgent
from pydantic_ai import NativeOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.openai import OpenAIResponsesModel as TypedResponses
from pydantic_ai.providers.openai import OpenAIProvider

set_tracing_disabled(True)
how = {"base_url": os.environ["BASE"] + "/v1", "api_key": "none", "max_retries": 0}


class Said(BaseModel):
    """What was said."""

    word: str


def run_it(command: str) -> str:
    """Run it."""
    return "ran " + command


async def agents():
    """An answer, a tool there and back (whole and streamed), an object, and a history that goes on."""
    bash = function_tool(run_it, name_override="Bash")
    client = AsyncOpenAI(**how)
    for shape in (OpenAIChatCompletionsModel, OpenAIResponsesModel):

        def agent(name, model=shape, **options):
            return Agent(name="a", model=model(model=name, openai_client=client), **options)

        plain = await Runner.run(agent("echo", instructions="Be brief."), "one two")
        assert plain.final_output == "ECHO<one two>", plain
        worker = agent("worker", tools=[bash])
        assert (await Runner.run(worker, "what?")).final_output.startswith("TOLD<ran echo")
        streamed = Runner.run_streamed(worker, "what?")
        kinds = {event.type async for event in streamed.stream_events()}
        assert streamed.final_output.startswith("TOLD<ran echo") and "raw_response_event" in kinds, kinds
        typed = await Runner.run(agent("json", output_type=Said), '{"word":"cold"}')
        assert typed.final_output == Said(word="cold"), typed
        handing = await Runner.run(agent("echo", handoffs=[worker]), "x")
        history = [*handing.to_input_list(), {"role": "user", "content": "y"}]
        assert (await Runner.run(agent("echo"), history)).final_output == "ECHO<y>"


async def typed_agents():
    """The same, as pydantic-ai puts it."""
    async with AsyncOpenAI(**how) as client:
        provider = OpenAIProvider(openai_client=client)
        for shape in (OpenAIChatModel, TypedResponses):
            agent = TypedAgent(shape("echo", provider=provider))
            assert (await agent.run("one two")).output == "ECHO<one two>"
            async with agent.run_stream("one two") as stream:
                assert "".join([text async for text in stream.stream_text(delta=True)]) == "ECHO<one two>"
            maker = TypedAgent(shape("json", provider=provider), output_type=NativeOutput(Said))
            typed = await maker.run('{"word":"cold"}')
            assert typed.output == Said(word="cold"), typed
            worker = TypedAgent(shape("worker", provider=provider))
            worker.tool_plain(run_it, name="Bash")
            done = await worker.run("what?")
            assert done.output.startswith("TOLD<ran echo"), done
            assert (await agent.run("three", message_history=done.all_messages())).output == "ECHO<three>"
            for model, status in (("busy", 429), ("broken", 502), ("nonesuch", 404)):
                try:
                    await TypedAgent(shape(model, provider=provider)).run("x")
                except ModelHTTPError as error:
                    assert error.status_code == status, error
                else:
                    raise AssertionError(f"{model} answered")


asyncio.run(agents())
asyncio.run(typed_agents())
print("done")
