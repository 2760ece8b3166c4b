#!/bin/sh
# Installs the clients that the tests in this folder ask the node with, once, into build/clients/: Python packages in two
# environments of their own (what stands on openai 2 does not go with what stands on openai 3), and packages for Node.js.
# Claude Code and Codex come from scripts/install_providers.sh.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/../.." && pwd)
place="$root/build/clients"
python="openai==2.54.0 anthropic==2.12.0 langchain-openai==1.7.3 litellm==1.106.2 llm==0.32.1 schemathesis==4.32.5 mcp==2.3.0"
later="openai==3.54.0 openai-agents==0.24.0 pydantic-ai-slim[openai]==2.68.0"
npm="openai@7.57.0 @anthropic-ai/sdk@1.12.0 ai@6.0.326 @ai-sdk/openai-compatible@2.0.91 @ai-sdk/openai@3.0.141 @ai-sdk/anthropic@3.0.139 zod@4.6.7"
stamp="$place/installed-$(echo "$python $later $npm" | cksum | cut -d' ' -f1)"

if [ -e "$stamp" ]; then
    exit 0
fi
mkdir -p "$place"
install() {
    environment="$place/$1"
    shift
    [ -x "$environment/bin/python" ] || "${PYTHON:-python3}" -m venv "$environment"
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
}
# shellcheck disable=SC2086
install venv $python
# shellcheck disable=SC2086
install later $later
# shellcheck disable=SC2086
(cd "$place" && npm install --silent --no-audit --no-fund --no-save $npm)
rm -f "$place"/installed-*
: > "$stamp"
echo "clients: ready in build/clients"
