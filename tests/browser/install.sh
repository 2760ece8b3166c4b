#!/bin/sh
# What the browser tests need: Debian's Chromium, and a typeface for the screenshots.
set -eu
if command -v chromium >/dev/null; then
  exit 0
fi
if [ "$(id -u)" != 0 ]; then
  echo "Chromium is missing; as root: apt-get install --no-install-recommends chromium fonts-inter" >&2
  exit 1
fi
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends chromium fonts-inter
