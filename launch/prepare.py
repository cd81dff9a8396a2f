"""Prepares a raw log of interactions for training: cuts it into spans of time and buckets of users, out of core."""

import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from dist_imsr.config import parse
from dist_imsr.console import output_console, run_writer
from dist_imsr.data.prepare import PrepareConfig, prepare


def main() -> int:
    """Runs the command; returns the exit status of `run_writer`."""
    config = parse(PrepareConfig, description=__doc__)

    def work(console: Console) -> None:
        manifest = prepare(config, console)
        _report(manifest, output_console())
        console.print(f"written to {config.output}", highlight=False, soft_wrap=True)

    return run_writer("prepare.py", work)


def _report(manifest: dict[str, Any], console: Console) -> None:
    """Prints the data set's row of the paper's Table II and the numbers of rejected rows."""
    spans = manifest["interactions_per_span"]
    names = ("dataset", "#users", "#items", "pre-training", *(f"span {span}" for span in range(1, len(spans))))
    counts = (f"{count:,}" for count in (manifest["users"], manifest["items"], *spans))
    row = (manifest["source"]["name"], *counts)
    width = sum(max(map(len, cell)) + 3 for cell in zip(names, row, strict=True)) + 1
    wide = width <= console.width
    table = Table(*names) if wide else Table.grid(padding=(0, 2))
    for line in [row] if wide else zip(names, row, strict=True):
        table.add_row(*line)
    console.print(table)
    for how, files in manifest["source"]["read_as"].items():
        if how:
            several = f" ({files} files)" if files > 1 else ""
            console.print(f"read as: {how}{several}", highlight=False, soft_wrap=True, markup=False)
    totals = [
        f"{kind}: " + (", ".join(f"{count:,} {reason}" for reason, count in manifest[key].items()) or "none")
        for key, kind in (("rejected", "rejected"), ("left_out", "left out"))
        if manifest[key] or key == "rejected"
    ]
    console.print(f"{manifest['rows_read']:,} rows read; {'; '.join(totals)}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
