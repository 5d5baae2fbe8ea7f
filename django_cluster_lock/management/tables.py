"""Plain text for terminals: aligned tables in which no name can play tricks."""

import unicodedata
from collections.abc import Iterator, Sequence

from django_cluster_lock.printable import escaped


def table(header: Sequence[str], rows: Sequence[Sequence[object]], width: int | None = None) -> Iterator[str]:
    """The lines of a table, cut at the terminal's width if there is one."""
    cells = [list(header), *([escaped(str(cell)) for cell in row] for row in rows)]
    widths = [max(map(columns, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        line = "  ".join(cell + " " * (wide - columns(cell)) for cell, wide in zip(row, widths, strict=True)).rstrip()
        yield line if width is None or columns(line) <= width else line[: max(width - 1, 0)] + "…"


def columns(text: str) -> int:
    """How many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(1 + (unicodedata.east_asian_width(char) in "WF") for char in text if not unicodedata.combining(char))


def duration(seconds: float) -> str:
    """Seconds as people read them."""
    if seconds < 59.95:  # what is written as 60.0 is a minute
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds + 0.05), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02}s"
    return f"{minutes // 60}h{minutes % 60:02}m"
