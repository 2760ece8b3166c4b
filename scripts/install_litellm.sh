#!/bin/sh
# Installs LiteLLM's proxy, pinned (benchmarks/litellm.txt), into build/litellm/ and nowhere else (740 MB): `make bench`
# measures it beside Shoal. Run from anywhere; PYTHON picks the interpreter. Does nothing when all is in place.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd)
place="$root/build/litellm"
list="$root/benchmarks/litellm.txt"
stamp="$place/installed"
want=$(cksum < "$list")

if [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
    exit 0
fi
rm -f "$stamp"
mkdir -p "$place"
echo "litellm: installing into build/litellm (about two minutes)"
[ -x "$place/venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$list"
"$place/venv/bin/python" -m pip check >/dev/null || echo "litellm: pip finds conflicts among the pinned packages" >&2
printf '%s' "$want" > "$stamp"
echo "litellm: ready in build/litellm"
