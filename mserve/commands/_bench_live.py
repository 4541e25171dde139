"""`mserve bench`: what a person sees while it runs, on stderr: phases, and on a terminal also numbers."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from . import _output

if TYPE_CHECKING:
    from rich.text import Text

    from ..bench.load.recorder import Recorder

REFRESHES_PER_S = 2.0
Records = Callable[[], Sequence["Recorder"]]


class Live:
    """Phase lines on stderr; where that is a terminal, a line of numbers below them."""

    def __init__(self) -> None:
        self.records: Records = list
        self.phase = ""
        self._print: Callable[[str], None] = _output.note

    def note(self, text: str) -> None:
        """A line for the person watching: what is being done now."""
        self.phase = text.strip()
        self._print(_output.printable(text))

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draw the numbers for as long as this lasts."""
        if not sys.stderr.isatty():
            yield
            return
        from rich.console import Console
        from rich.live import Live as Drawn
        from rich.text import Text

        console = Console(stderr=True)
        with Drawn(
            console=console, get_renderable=self._numbers, refresh_per_second=REFRESHES_PER_S, transient=True
        ):
            self._print = lambda text: console.print(Text(text))
            try:
                yield
            finally:
                self._print = _output.note

    def _numbers(self) -> Text:
        from rich.text import Text

        from ..bench.results.glance import glance

        records = self.records()
        if not records:
            return Text("")
        return Text(f"  {glance(records, time.perf_counter_ns())}", style="cyan")
