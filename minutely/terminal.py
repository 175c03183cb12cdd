"""Where commands print: a console that is as wide as its lines where no person looks at it, and that bears to be cut off."""

from __future__ import annotations

import os
from typing import ClassVar

from rich.console import Console

_WIDE = 10_000


class Terminal(Console):
    """Standard output, or standard error. Where that is no terminal, nothing is wrapped: what reads it reads lines."""

    cut_off: ClassVar[bool] = False
    """Whether whoever read the output is gone, as `head` is after ten lines."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=not stderr, soft_wrap=stderr)
        if not self.is_terminal:
            self.width = _WIDE

    def on_broken_pipe(self) -> None:
        """Go on in silence: what is being done, such as a replay, is worth its end. The command's status tells."""
        Terminal.cut_off = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())
