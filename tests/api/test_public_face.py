"""The public face of the package, and the life of what stands behind it: threads, forks, imports."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import shoal
import trio
from shoal import RouterDeps, generate_text, register_llm_provider


class Parrot:
    def generate(self, prompt: str, *, model_name: str | None = None, **kwargs: Any) -> str:
        return f"squawk {prompt}"


def test_closing_ends_the_thread_and_the_next_call_starts_anew(deps: RouterDeps) -> None:
    register_llm_provider("parrot", Parrot)
    generate_text("x", deps=deps)
    assert "shoal" in {thread.name for thread in threading.enumerate()}
    deps.close()
    assert "shoal" not in {thread.name for thread in threading.enumerate()}
    assert generate_text("x", deps=deps) == "squawk x"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_a_loop_of_its_own(tmp_path: Path) -> None:
    code = f"""
import os, sys
from shoal import RouterDeps, generate_text, register_llm_provider
class Parrot:
    def generate(self, prompt, *, model_name=None, **kwargs):
        return prompt
register_llm_provider("parrot", Parrot)
open({str(tmp_path / "c.toml")!r}, "w").write("[providers.local_hf]\\nenabled = false\\n")
deps = RouterDeps(config={str(tmp_path / "c.toml")!r}, data_dir={str(tmp_path)!r}, environ={{}})
assert generate_text("parent", deps=deps) == "parent"
pid = os.fork()
if pid == 0:
    os._exit(0 if generate_text("child", deps=deps) == "child" else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


async def test_under_trio_it_says_how_to_call_it(deps: RouterDeps) -> None:
    register_llm_provider("parrot", Parrot)
    with pytest.raises(RuntimeError, match=r"trio\.to_thread\.run_sync"):
        generate_text("x", deps=deps)
    assert await trio.to_thread.run_sync(lambda: generate_text("x", deps=deps)) == "squawk x"


# -- the face


def test_importing_shoal_loads_nothing_heavy() -> None:
    code = (
        "import sys, shoal; shoal.llm_router_available;"
        "bad = [m for m in ('torch', 'transformers', 'libp2p', 'click', 'rich') if m in sys.modules];"
        "sys.exit(' '.join(bad) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    light = "import sys, shoal; sys.exit('trio loaded' if 'trio' in sys.modules else 0)"
    subprocess.run([sys.executable, "-c", light], check=True, timeout=60)


def test_every_name_of_the_public_face_is_there() -> None:
    for name in shoal.__all__:
        assert getattr(shoal, name) is not None
        assert name in dir(shoal)
    assert shoal.llm_router_available is True
    with pytest.raises(AttributeError, match="no attribute 'generate_txt'"):
        shoal.generate_txt  # noqa: B018
