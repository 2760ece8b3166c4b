"""One daemon a data directory, by flock(2): the operating system lets go of it however the daemon ends.

with hold(data_dir):
    ...
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from .paths import lock_file, reason

PROBE_GRACE_S = 0.2
"""For how long `hold` tries again: `holder` takes the lock for an instant to see whether it is free."""


class AlreadyRunningError(Exception):
    """Another daemon holds the data directory; `pid` is None where it did not say."""

    def __init__(self, data: Path, pid: int | None) -> None:
        who = f"(pid {pid}) " if pid else ""
        super().__init__(f"{data}: a node {who}already runs on this data directory; stop it or give another --data-dir")
        self.data, self.pid = data, pid


class LockError(Exception):
    """The lock cannot be taken for another reason than a second daemon. One line with the remedy."""


@contextlib.contextmanager
def hold(data: Path) -> Iterator[None]:
    """Hold the data directory. Raises AlreadyRunningError or LockError. Blocks the thread for PROBE_GRACE_S at most."""
    path = lock_file(data)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LockError(f"{path}: the lock cannot be opened: {reason(error)}") from None
    try:
        _take(handle, data)
        os.ftruncate(handle, 0)
        try:
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            raise LockError(f"{path}: cannot be written: {reason(error)}") from None
        yield
    finally:
        os.close(handle)  # the file stays: removing it would let two daemons hold two files of the same name


def _take(handle: int, data: Path) -> None:
    give_up = time.monotonic() + PROBE_GRACE_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= give_up:
                raise AlreadyRunningError(data, _pid(handle)) from None
            time.sleep(0.02)
        except OSError as error:
            if error.errno == errno.ENOLCK:
                raise LockError(f"{data}: this file system has no locks; give a --data-dir on a local disk") from None
            raise LockError(f"{data}: the lock cannot be taken: {reason(error)}") from None
        else:
            return


def holder(data: Path) -> int | None:
    """The pid of the daemon that runs on this data directory; 0 when it does not say; None when none runs."""
    try:
        handle = os.open(lock_file(data), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _pid(handle) or 0
    else:
        return None
    finally:
        os.close(handle)


def _pid(handle: int) -> int | None:
    text = os.pread(handle, 32, 0).strip()
    return int(text) if text.isdigit() else None
