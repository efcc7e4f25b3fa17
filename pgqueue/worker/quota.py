"""How many jobs a worker may still run: one number that its processes share."""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import tempfile


class Quota:
    """Jobs left for all processes of a worker; made before they are forked.

    - `jobs`: how many.

    The lock is one of the system on an unlinked file: it ends with the process that holds it, however that dies. What
    a dead process had taken is gone, also for jobs that it had only claimed.
    """

    def __init__(self, jobs: int) -> None:
        descriptor, path = tempfile.mkstemp(prefix="pgqueue-quota-")
        os.unlink(path)  # noqa: PTH108
        os.ftruncate(descriptor, 8)
        self._descriptor = descriptor
        self._memory = mmap.mmap(descriptor, 8)
        struct.pack_into("=q", self._memory, 0, jobs)

    @property
    def left(self) -> int:
        """How many are left."""
        return int(struct.unpack_from("=q", self._memory, 0)[0])

    def take(self, wanted: int) -> int:
        """Take at most `wanted`; return how many were left to be taken. A negative number gives some back."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
        try:
            taken = min(wanted, self.left)
            struct.pack_into("=q", self._memory, 0, self.left - taken)
            return taken
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)
