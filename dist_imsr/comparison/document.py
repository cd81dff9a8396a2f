"""Documents that hold the tables of a comparison between two marks."""

from pathlib import Path

from dist_imsr.checks import require
from dist_imsr.files import write_whole


def replace_part(path: Path, name: str, text: str | None) -> None:
    """Replaces the lines of a document between two marks.

    Args:
        path: the document.
        name: in the marks.
        text: takes the place of these lines; None to only look for the marks.

    Raises:
        ValueError: if there is no such document, or not each mark once.
    """
    require(path.is_file(), "document", str(path), "a Markdown file")
    document, begin, end = path.read_text(), f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    marked = document.count(begin) == document.count(end) == 1 and document.index(begin) < document.index(end)
    require(marked, "document", str(path), f"a file with the lines {begin.strip()} and {end.strip()}")
    if text is not None:
        head, tail = document.split(begin)[0], document.split(end)[1]
        write_whole(path, f"{head}{begin}\n{text}\n{end}{tail}")
