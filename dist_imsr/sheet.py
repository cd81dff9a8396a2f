"""A table of texts, for the terminal and as Markdown."""

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass
class Sheet:
    """A table of texts.

    Args:
        title: above it.
        caption: how to read it.
        columns: their names.
        rows: as many texts each.
        labels: how many of the columns tell what a row is; numbers follow.
    """

    title: str
    caption: str
    columns: list[str]
    rows: list[list[str]]
    labels: int = 2

    def show(self, console: Console) -> None:
        """Prints it.

        Args:
            console: where.
        """
        table = Table(title=self.title, caption=self.caption, caption_justify="left")
        for place, name in enumerate(self.columns):
            table.add_column(name, justify="left" if place < self.labels else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)

    def markdown(self) -> str:
        """The same as Markdown.

        Returns:
            Lines that end with a newline.
        """
        rows = [self.columns, ["---"] * len(self.columns), *self.rows]
        lines = ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows]
        return "\n".join([f"## {self.title}", "", *lines, "", self.caption, ""])
