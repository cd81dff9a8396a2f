"""A table of texts, for the terminal and as Markdown."""

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass
class Sheet:
    """A table of texts.

    Args:
        title: above the table.
        caption: below the table: how to read it.
        columns: their names.
        rows: one text for each column.
        labels: the number of leading columns that identify a row and are aligned left; numbers follow.
    """

    title: str
    caption: str
    columns: list[str]
    rows: list[list[str]]
    labels: int = 2

    def show(self, console: Console) -> None:
        """Prints the table."""
        table = Table(title=self.title, caption=self.caption, caption_justify="left")
        for place, name in enumerate(self.columns):
            table.add_column(name, justify="left" if place < self.labels else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)

    def markdown(self) -> str:
        """The table as lines of Markdown, each with its newline."""
        rows = [self.columns, ["---"] * len(self.columns), *self.rows]
        lines = ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows]
        return "\n".join([f"## {self.title}", "", *lines, "", self.caption, ""])
