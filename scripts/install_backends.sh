#!/bin/sh
# Makes `transformers serve` ready, once, in build/backends/: a real OpenAI-compatible server for the backend tests.
# torch and transformers are the node's own (VENV, default .venv); what the server needs beside them goes into an
# environment of its own. Run from anywhere.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
cd "$root"
from="${VENV:-.venv}"
venv="$root/build/backends/venv"
stamp="$venv/installed-2"

if [ -e "$stamp" ]; then
    exit 0
fi
rm -rf "$venv"
mkdir -p "$root/build/backends"
"$from/bin/python" -m venv "$venv"
there=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$from/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$there/node.pth"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps \
    fastapi==0.121.3 starlette==0.50.0 uvicorn==0.38.0 annotated-doc==0.0.4 accelerate==1.12.0 psutil
"$venv/bin/python" -c "import fastapi, uvicorn, accelerate, transformers" >/dev/null
: > "$stamp"
echo "providers: transformers serve is ready in build/backends/venv"
