"""Messages that tell a waiting user that a kernel is being compiled."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator

#: Seconds after which a compile is announced.
PATIENCE = 1.5

logger = logging.getLogger("optlang")


@contextlib.contextmanager
def announced(what: str, where: str) -> Iterator[None]:
    """Log that ``what`` is being compiled if it takes longer than a moment, and when it is done.

    The lines go to the logger ``optlang``; ``OPTLANG_QUIET=1`` or the logger's level silence them.

    Args:
        what: The rule and the types (``AdamW for float32 on cpu``).
        where: Where the kernel is cached (``once, then kept in ...``).
    """
    begin, said = time.perf_counter(), threading.Event()

    def say() -> None:
        said.set()
        logger.warning("compiling %s; %s", what, where)

    timer = threading.Timer(PATIENCE, say)
    timer.daemon = True
    if os.environ.get("OPTLANG_QUIET", "0") in ("", "0"):
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if said.is_set():
            logger.warning("compiled %s in %.1f s", what, time.perf_counter() - begin)
