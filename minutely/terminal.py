"""Where commands print: a console that never wraps piped output, and survives a reader that closes the pipe."""

from __future__ import annotations

import os
from typing import ClassVar

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from basis.printable import printable

_WIDE = 10_000


def literal(text: str) -> str:
    """Return markup that prints a text of others as it is, its control characters escaped, on one line."""
    shown = printable(text)
    bare = shown.rstrip("\\")
    ends = "\\" * 2 * (len(shown) - len(bare))  # before a tag they escape each other, so a tag of ours follows them
    return f"{escape(bare)}[none]{ends}[/none]" if ends else escape(bare)


class TitledTable(Table):
    """A table under a line that may be longer than its rows: a title of rich's own is wrapped to their width."""

    def __init__(self, *headings: str, heading: str, show_header: bool = True) -> None:
        super().__init__(*headings, show_header=show_header)
        self._heading = heading

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render both."""
        yield Text.from_markup(self._heading, style="table.title")
        yield from super().__rich_console__(console, options)


class Terminal(Console):
    """Standard output or standard error. Not wrapped unless it is a terminal: scripts read lines."""

    cut_off: ClassVar[bool] = False
    """Whether the reader of the output closed it, as `head` does after ten lines."""

    def __init__(self, *, stderr: bool = False) -> None:
        # `:x:` in an id is no emoji.
        super().__init__(stderr=stderr, highlight=not stderr, soft_wrap=stderr, emoji=False)
        if not self.is_terminal:
            self.width = _WIDE

    def on_broken_pipe(self) -> None:
        """Continue without output: the work, such as a replay, is worth finishing. The exit status says what happened."""
        Terminal.cut_off = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())
