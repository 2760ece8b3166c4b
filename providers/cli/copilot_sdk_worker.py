"""One answer through GitHub's Copilot SDK (PyPI `github-copilot-sdk`), in a process of its own.

Run as a script by the interpreter that has the SDK, which need not be the node's: it imports nothing of Shoal. The SDK
is an asyncio library; here it has the only loop. One JSON line comes on stdin, events go to stdout as JSON lines in the
shape of `copilot --output-format json`, and the last one is `result`. Keys come by environment variables.
"""

import asyncio
import json
import os
import sys
from typing import Any

TOLD = frozenset(
    (
        "abort",
        "assistant.message_delta",
        "assistant.message",
        "assistant.usage",
        "assistant.turn_end",
        "tool.execution_start",
        "model.call_failure",
        "model.call_finished",
        "session.error",
    )
)


def say(kind: str, **more: Any) -> None:
    sys.stdout.write(json.dumps({"type": kind, **more}, default=str) + "\n")
    sys.stdout.flush()


async def answer() -> int:
    from copilot import CopilotClient, RuntimeConnection
    from copilot.generated.rpc import PermissionDecisionReject  # a plain dict of the same fields breaks the SDK 1.0.27

    def deny(request: Any, invocation: Any = None) -> PermissionDecisionReject:
        return PermissionDecisionReject()

    client = CopilotClient(
        connection=RuntimeConnection.for_stdio(path=os.environ["COPILOT_CLI_PATH"]),
        env=dict(os.environ),
        working_directory=os.getcwd(),
        log_level="none",
        use_logged_in_user=False,
        github_token=os.environ.get("COPILOT_GITHUB_TOKEN") or None,
    )
    # The client starts while the question is on its way: a warm worker waits here.
    await client.start()
    say("ready")
    asked = json.loads(await asyncio.to_thread(sys.stdin.buffer.readline))
    over = asyncio.Event()
    failed = False

    def on(event: Any) -> None:
        nonlocal failed
        kind = getattr(event.type, "value", event.type)
        if kind in TOLD:
            data = event.data.to_dict() if hasattr(event.data, "to_dict") else vars(event.data)
            say(kind, data=data)
        failed = failed or kind == "session.error"
        if kind in ("session.idle", "session.error"):
            over.set()

    options: dict[str, Any] = {}
    if asked.get("base_url"):
        options["provider"] = {
            "type": "openai",
            "wire_api": "completions",
            "base_url": asked["base_url"],
            "api_key": os.environ.get("COPILOT_PROVIDER_API_KEY", ""),
            "max_output_tokens": asked["max_tokens"],
            "max_prompt_tokens": asked["context_length"],
        }
    session = await client.create_session(
        model=asked.get("model"),
        streaming=True,
        on_permission_request=deny,
        on_event=on,  # it listens before anything is sent
        available_tools=[],
        system_message={"mode": "replace", "content": asked["system"]},
        skip_custom_instructions=True,
        enable_config_discovery=False,
        enable_session_telemetry=False,
        enable_skills=False,
        enable_session_store=False,
        infinite_sessions={"enabled": False},
        **options,
    )
    await session.send(asked["prompt"])
    await asyncio.wait_for(over.wait(), asked["timeout_s"])
    return 1 if failed else 0


def main() -> None:
    if sys.argv[1:] == ["--version"]:
        import importlib.metadata

        import copilot  # noqa: F401 - the SDK must be there, not only its name

        sys.stdout.write(f"github-copilot-sdk {importlib.metadata.version('github-copilot-sdk')}\n")
        return
    code = asyncio.run(answer_or_fault())
    say("result", exitCode=code)
    # Not by way of the SDK's own end, which takes a second: whoever reads the result ends this process group.
    os._exit(code)


async def answer_or_fault() -> int:
    try:
        return await answer()
    except Exception as error:  # the process's boundary: its class says what happened, its text may quote the prompt
        say("session.error", data={"errorType": type(error).__name__, "message": type(error).__name__})
        return 1


if __name__ == "__main__":
    main()
