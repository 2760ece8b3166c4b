#!/bin/sh
# Installs the clients that the tests in this folder ask the node with, once, into build/clients/: Python packages in an
# environment of their own, and OpenAI's package for Node.js. Claude Code and Codex come from scripts/install_providers.sh.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/../.." && pwd)
place="$root/build/clients"
python="openai==2.54.0 anthropic==2.12.0 langchain-openai==1.7.3 litellm==1.106.2 llm==0.32.1 schemathesis==4.32.5 mcp==2.3.0"
npm="openai@6.49.0"
stamp="$place/installed-$(echo "$python $npm" | cksum | cut -d' ' -f1)"

if [ -e "$stamp" ]; then
    exit 0
fi
mkdir -p "$place"
[ -x "$place/venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$place/venv"
# shellcheck disable=SC2086
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check $python
(cd "$place" && npm install --silent --no-audit --no-fund --no-save "$npm")
rm -f "$place"/installed-*
: > "$stamp"
echo "clients: ready in build/clients"
