"""The keys of a report."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dist_imsr.checks import require

Format = Literal["html", "png", "svg", "pdf"]


@dataclass
class ReportConfig:
    """Writes one HTML page, which opens offline, from the folders of runs and of a comparison.

    The tables that its figures are drawn from are written next to it, to a folder of the page's name and ``_data``.

    Args:
        output: the page; with another ``format``, the figure's file.
        runs: folders of runs. Runs that differ in their seed alone are shown as one, with bands; others of one strategy
            by the names of their folders.
        compare: the folder of a comparison, whose cells are shown by the names of their rows.
        reference: what others are compared with, by the name that it is shown by; fine_tuning by default, if there is.
        top: N of the metrics; by default that of the comparison, else 20, else the smallest that all runs have.
        user: the raw id of the user to show; by default, the one with most interests after the last exported span, and
            of these the one with most interactions in it.
        seed: of t-SNE.
        format: of the output: the page, or one figure for a paper.
        figure: the figure to write, where ``format`` is not html; the data of the page have their names.
        watch: seconds between two versions of the page, which is written until Ctrl-C; 0 for once.
        overwrite: replace an output that no report has written.
    """

    output: Path
    runs: list[Path] = field(default_factory=list)
    compare: Path | None = None
    reference: str | None = None
    top: int | None = None
    user: str | None = None
    seed: int = 0
    format: Format = "html"
    figure: str | None = None
    watch: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        require(bool(self.runs) or self.compare is not None, "runs", [], "at least one folder, or compare")
        require(len(set(self.runs)) == len(self.runs), "runs", list(map(str, self.runs)), "different folders")
        require(self.top is None or self.top >= 1, "top", self.top, "at least 1")
        require(self.seed >= 0, "seed", self.seed, "at least 0")
        require(self.watch >= 0, "watch", self.watch, "at least 0")
        image = self.format != "html"
        require(image == (self.figure is not None), "figure", self.figure, "a name with format png, svg or pdf alone")
        require(not (image and self.watch), "watch", self.watch, "0 for a single figure")
        suffix = f".{self.format}"
        require(self.output.suffix == suffix, "output", str(self.output), f"a name that ends in {suffix}")
        require(not self.output.is_dir(), "output", str(self.output), "a file")
