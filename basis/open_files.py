"""The limit of open files: raised where a service begins, and named where it is reached.

The usual limit of 1,024 is soft, for programs that use `select`. A joiner of a hundred partitions needs more, and what then fails
looks like brokers that do not answer.
"""

from __future__ import annotations

import errno
import os
import resource
from contextlib import suppress

TOO_MANY = os.strerror(errno.EMFILE)
"""How the system, and libraries after it, say that the limit is reached."""
ALLOWED = "allowed: more open files (ulimit -n), some 40 for each partition of a joiner"


def raise_limit() -> None:
    """Raise the limit of this process to the one that the system allows it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # macOS says that there is none, and has one
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
