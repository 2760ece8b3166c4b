#!/bin/sh
# Installs the command-line tools that the providers drive, pinned, into build/providers/ and nowhere else (1.2 GB):
# npm packages with that folder as prefix, the Copilot SDK in a virtual environment of its own. Run from anywhere;
# PYTHON picks the interpreter. Needs Node 20 or later with npm. Does nothing when all is in place.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
place="$root/build/providers"
npm_packages="@openai/codex@0.169.0 @anthropic-ai/claude-code@2.1.330 @google/gemini-cli@0.61.0 @github/copilot@1.0.102"
sdk="github-copilot-sdk==1.0.27"
stamp="$place/installed"
want="$npm_packages $sdk"

if [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
    exit 0
fi
command -v npm >/dev/null || { echo "providers: npm is not on PATH; install Node 20 or later" >&2; exit 1; }
rm -f "$stamp"
mkdir -p "$place"
echo "providers: installing into build/providers (about a minute)"
# shellcheck disable=SC2086 # one word for each package
npm install --prefix "$place" --no-audit --no-fund --no-update-notifier --loglevel=error $npm_packages
if [ ! -x "$place/sdk/bin/python" ]; then
    "${PYTHON:-python3}" -m venv "$place/sdk"
fi
"$place/sdk/bin/python" -m pip install --quiet --disable-pip-version-check "$sdk"
for program in codex claude gemini copilot; do
    [ -x "$place/node_modules/.bin/$program" ] || { echo "providers: $program was not installed" >&2; exit 1; }
done
printf '%s' "$want" > "$stamp"
echo "providers: codex, claude, gemini, copilot and the Copilot SDK are ready in build/providers"
