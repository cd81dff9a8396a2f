"""Prepares a raw log of interactions for training: cuts it into spans of time and buckets of users, out of core.

``--append FOLDER`` changes prepared data: it adds a later log, retires old spans, or forgets users.
"""

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from rich.console import Console
from rich.table import Table

from dist_imsr.config import parse
from dist_imsr.console import output_console, run_writer
from dist_imsr.data.cutting import date_of
from dist_imsr.data.manifest import MANIFEST, SpanEntry
from dist_imsr.data.prepare import PrepareConfig, prepare
from dist_imsr.data.storage import read_bytes


def main() -> int:
    """Runs the command; returns the exit status of `run_writer`."""
    config = parse(PrepareConfig, description=__doc__)
    before: bytes | None = None

    def work(console: Console) -> None:
        nonlocal before
        before = _manifest(config)
        runs: AbstractContextManager[None] = nullcontext()
        if config.run_dirs:
            from dist_imsr.training.forget import forgetting_in_runs  # with torch, which takes seconds to import

            runs = forgetting_in_runs(config, console)
        with runs:
            manifest = prepare(config, console)
        if config.reads_log:
            report(manifest, output_console())
        console.print(f"written to {config.append or config.output}", highlight=False, soft_wrap=True)

    def when_stopped() -> str:
        if not config.reads_log:
            return "the same command does the rest"
        if _manifest(config) == before:
            return "nothing was written"
        rest = config.forget_users is not None or config.retire_before is not None
        return "the log is in the data" + ("; without --input, the same command does the rest" if rest else "")

    return run_writer("prepare.py", work, when_stopped)


def _manifest(config: PrepareConfig) -> bytes | None:
    """The bytes of the data set's dataset.json; None if there is none."""
    folder = config.append or config.output
    return read_bytes(folder, MANIFEST) if folder is not None else None


def report(manifest: dict[str, Any], console: Console) -> None:
    """Prints the data set's row of the paper's Table II, what is new in each span, and the numbers of rejected rows."""
    record = manifest["preparations"][-1]
    first, last = record["spans"]
    entries = [SpanEntry(**entry) for entry in manifest["spans"]]
    if not first:
        spans = [entry.interactions for entry in entries]
        names = ("dataset", "#users", "#items", "pre-training", *(f"span {span}" for span in range(1, len(spans))))
        counts = (f"{count:,}" for count in (sum(entries[-1].users), entries[-1].items, *spans))
        _print_table([names, (manifest["source"], *counts)], console)
    if last:
        lines: list[tuple[str, ...]] = [
            ("span", "from", "rows", "users", "new users", "new items", "of returning users", "with new items")
        ]
        lines += [_changes(span, entries) for span in range(max(first, 1), last + 1)]
        _print_table(lines, console)
    for how, files in record["read_as"].items():
        if how:
            several = f" ({files} files)" if files > 1 else ""
            console.print(f"read as: {how}{several}", highlight=False, soft_wrap=True, markup=False)
    totals = [
        f"{kind}: " + (", ".join(f"{count:,} {reason}" for reason, count in record[key].items()) or "none")
        for key, kind in (("rejected", "rejected"), ("left_out", "left out"))
        if record[key] or key == "rejected"
    ]
    console.print(f"{record['rows_read']:,} rows read; {'; '.join(totals)}", highlight=False, soft_wrap=True)


def _changes(span: int, entries: list[SpanEntry]) -> tuple[str, ...]:
    """How a span differs from those before it."""
    now, before = entries[span], entries[span - 1]
    new_users, new_items = sum(now.users) - sum(before.users), now.items - before.items
    counts = (now.interactions, now.active_users, new_users, new_items)
    rows = max(now.interactions, 1)
    shares = (now.interactions_of_returning_users / rows, now.interactions_with_new_items / rows)
    return str(span), date_of(now.first_second), *(f"{one:,}" for one in counts), *(f"{one:.1%}" for one in shares)


def _print_table(lines: Sequence[tuple[str, ...]], console: Console) -> None:
    width = sum(max(map(len, cell)) + 3 for cell in zip(*lines, strict=True)) + 1
    wide = width <= console.width
    table = Table(*lines[0]) if wide else Table.grid(padding=(0, 2))
    for line in lines[1:] if wide else zip(*lines, strict=True):
        table.add_row(*line)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
