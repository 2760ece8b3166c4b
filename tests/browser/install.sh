#!/bin/sh
# What the browser tests need: Debian's Chromium, a typeface for the screenshots, and axe-core for accessibility.
set -eu
root=$(CDPATH= cd -- "$(dirname -- "$0")/../.." && pwd)
axe=4.10.3

if ! grep -q "\"version\": \"$axe\"" "$root/build/axe/node_modules/axe-core/package.json" 2>/dev/null; then
  if command -v npm >/dev/null; then
    mkdir -p "$root/build/axe"
    (cd "$root/build/axe" && npm install --silent --no-audit --no-fund --no-save "axe-core@$axe")
  else
    echo "npm is missing, and the accessibility test is left out: apt-get install npm" >&2
  fi
fi
if command -v chromium >/dev/null; then
  exit 0
fi
if [ "$(id -u)" != 0 ]; then
  echo "Chromium is missing; as root: apt-get install --no-install-recommends chromium fonts-inter" >&2
  exit 1
fi
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends chromium fonts-inter
