"""`python -m benchmarks` runs every benchmark; names after it choose some: `python -m benchmarks session cache`."""

from __future__ import annotations

import importlib
import sys

NAMES = (
    "gateways",
    "node",
    "session",
    "http",
    "cache",
    "rescue",
    "providers",
    "dht",
    "local",
    "continuation",
    "answers",
    "gpu",
)


def main() -> None:
    names = sys.argv[1:] or NAMES
    for name in names:
        if name not in NAMES:
            sys.exit(f"no benchmark {name!r}; there are: {', '.join(NAMES)}")
        importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main()
