"""The tables of a comparison, for the terminal and as Markdown."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from dist_imsr.comparison.config import CompareConfig
from dist_imsr.comparison.results import Cells
from dist_imsr.comparison.tuning import Trial, chosen
from dist_imsr.files import write_whole
from dist_imsr.sheet import Sheet

_NOTHING = "-"


def quality(config: CompareConfig, records: Sequence[dict[str, Any]]) -> list[Sheet]:
    """Table III of the paper for each data set, and its Table IV where rows have base models of their own.

    Args:
        config: the comparison's keys.
        records: what `summary` gave.

    Returns:
        The tables.
    """
    pairs = [f"p {over} vs {other}" for other in config.tests for over in ("users", "seeds")]
    rates = [f"{name}@{config.top}" for name in ("HR", "NDCG")]
    columns = ["base", "strategy", *rates, "RI", *pairs, "seeds"]
    caption = (
        f"{' and '.join(rates)} (target: the latest interaction) in per cent: means over spans, then mean ± standard "
        f"deviation over seeds. RI: relative improvement of the average of both over {config.reference}, in per cent. "
        "p: two-sided paired t-tests of HR / NDCG over n users (each user's mean over spans and seeds) and over n "
        "seeds, not corrected for the number of tests; - where there is nothing to test."
    )
    anchors = {config.reference, *config.tests}
    sheets = []
    for data in config.data:
        here = [record for record in records if record["data"] == data]
        shared = [record for record in here if record["base"] in config.bases]
        apart = [record for record in here if record["base"] not in config.bases]
        apart += [record for record in here if record["base"] == config.bases[0] and record["strategy"] in anchors]
        parts = [(f"{data}: strategies (Table III)", shared, "")]
        if any(record["base"] not in config.bases for record in here):
            against = f" Models with a base of their own are compared with rows of {config.bases[0]}."
            parts.append((f"{data}: life-long models (Table IV)", apart, against))
        for title, rows, more in parts:
            sheets.append(Sheet(title, caption + more, columns, [_quality_row(config, row) for row in rows]))
    return sheets


def seconds(config: CompareConfig, all_cells: Sequence[Cells]) -> list[Sheet]:
    """Table V of the paper for each data set.

    Args:
        config: the comparison's keys.
        all_cells: of each row, base and data set.

    Returns:
        The tables.
    """
    many = config.cores // config.ranks
    caption = f"Seconds of training in span t, means over seeds; up to {many} run(s) at once on this machine."
    sheets = []
    for data in config.data:
        here = [(cells.entry, cells.seconds()) for cells in all_cells if cells.entry.data == data]
        spans = sorted({span for _, each in here for span in each})
        rows = [
            [entry.base, entry.row, *(f"{each[span]:.2f}" if span in each else _NOTHING for span in spans)]
            for entry, each in here
        ]
        title = f"{data}: training time (Table V)"
        sheets.append(Sheet(title, caption, ["base", "strategy", *(f"t={span}" for span in spans)], rows))
    return sheets


def tuned(config: CompareConfig, all_trials: Sequence[Sequence[Trial]]) -> list[Sheet]:
    """What was tried, and what was taken.

    Args:
        config: the comparison's keys.
        all_trials: of each row with one base on one data set.

    Returns:
        One table; none where nothing is tuned.
    """
    rows = [
        [*(record[name] for name in ("data", "base", "strategy", "values")), _number(record["validation"], 5), how]
        for record in tried(all_trials)
        for how in ["chosen" if record["chosen"] else record["reason"]]
    ]
    settings = config.tuning
    without = [name for name in config.strategies if name not in {row[2] for row in rows}]
    if settings.budget == 1 or not settings.keys:
        return []
    caption = (
        f"Validation (mean over {settings.spans} spans after pre-training, seed {settings.seed}) of at most "
        f"{settings.budget} trials for each row, base and data set; tests were not looked at."
    )
    if without:
        caption += f" As configured, with nothing to choose or to validate: {', '.join(without)}."
    return [Sheet("Tuning", caption, ["data", "base", "strategy", "values", "validation", ""], rows)]


def tried(all_trials: Sequence[Sequence[Trial]]) -> list[dict[str, Any]]:
    """A record of each trial.

    Args:
        all_trials: of each row with one base on one data set.

    Returns:
        Plain values.
    """
    records = []
    for trials in all_trials:
        best = chosen(list(trials))
        for trial in trials:
            values = ", ".join(f"{key}={value}" for key, value in trial.values.items()) or "as configured"
            state, entry = trial.job.state, trial.entry
            records.append(
                {
                    **{"data": entry.data, "base": entry.base, "strategy": entry.row, "trial": trial.number},
                    **{"values": values, "validation": trial.validation, "chosen": trial is best},
                    **{"status": state.status, "reason": state.reason, "run_seconds": state.seconds},
                }
            )
    return records


def publish(sheets: Sequence[Sheet], path: Path, console: Console) -> None:
    """Prints tables and writes them as Markdown.

    Args:
        sheets: the tables.
        path: the file.
        console: where they are printed.
    """
    for sheet in sheets:
        sheet.show(console)
    write_whole(path, "\n".join(sheet.markdown() for sheet in sheets))


def _quality_row(config: CompareConfig, record: dict[str, Any]) -> list[str]:
    head = [record["base"], record["strategy"]]
    remarks = [record["missing"], "own pre-training" if record["pretrained_apart"] else ""]
    seeds = "; ".join([f"{record['seeds']}", *filter(None, remarks)])
    if not record["seeds"]:
        return [*head, *[_NOTHING] * (3 + 2 * len(config.tests)), record["missing"]]
    rates = [
        _number(record[name], 2) + ("" if record[f"{name}_std"] is None else f" ± {record[f'{name}_std']:.2f}")
        for name in ("hr", "ndcg")
    ]
    own = record["strategy"] == config.reference and record["base"] in config.bases
    tests = []
    for other in config.tests:
        for over in ("users", "seeds"):
            n = record.get(f"n_{over}_vs_{other}")
            both = (_p(record.get(f"p_{over}_{name}_vs_{other}")) for name in ("hr", "ndcg"))
            tests.append(_NOTHING if not n else f"{' / '.join(both)} (n={n})")
    return [*head, *rates, _NOTHING if own else _number(record["ri"], 2), *tests, seeds]


def _number(value: float | None, digits: int) -> str:
    return _NOTHING if value is None else f"{value:.{digits}f}"


def _p(value: float | None) -> str:
    return _NOTHING if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"
