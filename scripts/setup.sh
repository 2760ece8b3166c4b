#!/usr/bin/env bash
# Makes .venv ready: checks what pip cannot bring (a Python, a compiler, two headers), then installs Shoal, pinned.
# fastecdsa, which libp2p needs, has no wheel: it is compiled, so gcc, Python's headers and GMP's must be there.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}

python=${PYTHON:-}
if [ -z "$python" ]; then
  for candidate in python3 python3.13 python3.12 python3.11; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      python=$candidate
      break
    fi
  done
fi
if [ -z "$python" ]; then
  echo "setup: Python 3.11 or newer is needed; on Debian: apt-get install python3 python3-venv python3-dev" >&2
  exit 1
fi

missing=()
command -v gcc >/dev/null || missing+=(gcc libc6-dev)
"$python" -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || missing+=(python3-dev)
echo '#include <gmp.h>' | gcc -E - >/dev/null 2>&1 || missing+=(libgmp-dev)
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
if [ ${#missing[@]} -gt 0 ]; then
  install="apt-get install -y --no-install-recommends ${missing[*]}"
  if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    echo "setup: installing ${missing[*]}"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive $install
  elif command -v apt-get >/dev/null && sudo -n true 2>/dev/null; then
    echo "setup: installing ${missing[*]} (sudo)"
    sudo apt-get update -qq && sudo DEBIAN_FRONTEND=noninteractive $install
  else
    echo "setup: these system packages are missing: ${missing[*]}" >&2
    echo "setup: on Debian or Ubuntu type:  sudo $install" >&2
    exit 1
  fi
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
echo "setup: installing Shoal and its tools into $venv (pinned by constraints.txt)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check pip==26.3 setuptools==84.2.1
PYTHONWARNINGS=ignore "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[local,test,lint]'
touch "$venv/.ready"
echo "setup: ready; \`. $venv/bin/activate\` puts the shoal command on your PATH"
