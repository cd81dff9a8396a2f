"""The tables of a comparison, for the terminal and as Markdown."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from dist_imsr.comparison.config import CompareConfig
from dist_imsr.comparison.grid import NO_BASE
from dist_imsr.comparison.results import Cells
from dist_imsr.comparison.tuning import Trial, best_trial
from dist_imsr.files import write_whole
from dist_imsr.sheet import Sheet

_NOTHING = "-"


def quality_tables(config: CompareConfig, records: Sequence[dict[str, Any]]) -> list[Sheet]:
    """Table III of the paper for each data set, and its Table IV for rows with base models of their own.

    Args:
        config: the comparison's keys.
        records: of `summary_records`.
    """
    pairs = [f"p {over} vs {other}" for other in config.tests for over in ("users", "seeds")]
    rates = [f"{name}@{config.top}" for name in ("HR", "NDCG")]
    columns = ["base", "strategy", *rates, f"{rates[0]} unseen", "validation", "K", "RI", *pairs, "seeds"]
    caption = (
        f"{' and '.join(rates)} (target: the latest interaction) in per cent: means over spans, then mean ± standard "
        "deviation over seeds. unseen: targets that are new to the user, ranked among items that are new to the user. "
        "validation: what early stopping reads, on targets of the trained span. K: a user's interests after the last "
        f"span. RI: relative improvement of the average of both over {config.reference}, in per cent. "
        "p: two-sided paired t-tests of HR / NDCG over n users (each user's mean over spans and seeds) and over n "
        "seeds, corrected by Holm's method within the tests of a base model against one row, both metrics together; - "
        "where there is nothing to test. Baselines have no base model and no seeds."
    )
    anchors = {config.reference, *config.tests}
    sheets = list[Sheet]()
    for data in config.data:
        here = [record for record in records if record["data"] == data]
        shared = [record for record in here if record["base"] in (*config.bases, NO_BASE)]
        own = [record for record in here if record["base"] not in (*config.bases, NO_BASE)]
        apart = own + [
            record for record in here if record["base"] in (config.bases[0], NO_BASE) and record["strategy"] in anchors
        ]
        parts = [(f"{data}: strategies (Table III)", shared, "")]
        if own:
            against = f" Models with a base of their own are compared with rows of {config.bases[0]}."
            parts.append((f"{data}: life-long models (Table IV)", apart, against))
        for title, rows, more in parts:
            lines = [_quality_row(config, row) for row in rows]
            sheets.append(Sheet(title, (caption if not sheets else "As above.") + more, columns, lines))
    return sheets


def time_tables(config: CompareConfig, all_cells: Sequence[Cells]) -> list[Sheet]:
    """Table V of the paper for each data set."""
    many = config.cores // config.ranks
    caption = f"Seconds of training in span t, means over seeds; up to {many} run(s) at once on this machine."
    sheets = list[Sheet]()
    for data in config.data:
        here = [(cells.experiment, cells.seconds()) for cells in all_cells if cells.experiment.data == data]
        spans = sorted({span for _, each in here for span in each})
        rows = [
            [experiment.base, experiment.row, *(_number(seconds.get(span), 2) for span in spans)]
            for experiment, seconds in here
        ]
        title = f"{data}: training time (Table V)"
        sheets.append(
            Sheet(
                title,
                caption if not sheets else "As above.",
                ["base", "strategy", *(f"t={span}" for span in spans)],
                rows,
            )
        )
    return sheets


def tuning_tables(config: CompareConfig, all_trials: Sequence[Sequence[Trial]]) -> list[Sheet]:
    """A table of the trials and which of them were chosen; none where nothing is tuned.

    Args:
        config: the comparison's keys.
        all_trials: of each experiment.
    """
    settings = config.tuning
    if settings.budget == 1 or not settings.keys:
        return []
    columns = ["data", "base", "strategy", "values"]
    rows = []
    for record in trial_records(all_trials):
        result = "chosen" if record["chosen"] else record["reason"]
        rows.append([*(record[name] for name in columns), _number(record["validation"], 5), result])
    caption = (
        f"Validation (mean over {settings.spans} spans after pre-training, seed {settings.seed}) of at most "
        f"{settings.budget} trials for each row, base and data set; tests were not looked at."
    )
    tuned = {row[2] for row in rows}
    untuned = [name for name in config.strategies if name not in tuned]
    if untuned:
        caption += f" As configured, with nothing to choose or to validate: {', '.join(untuned)}."
    return [Sheet("Tuning", caption, [*columns, "validation", ""], rows)]


def trial_records(all_trials: Sequence[Sequence[Trial]]) -> list[dict[str, Any]]:
    """A record of each trial, of plain values."""
    records = []
    for trials in all_trials:
        best = best_trial(list(trials))
        for trial in trials:
            state, experiment = trial.job.state, trial.experiment
            records.append(
                {
                    "data": experiment.data,
                    "base": experiment.base,
                    "strategy": experiment.row,
                    "trial": trial.number,
                    "values": ", ".join(f"{key}={value}" for key, value in trial.values.items()) or "as configured",
                    "validation": trial.validation,
                    "chosen": trial is best,
                    "status": state.status,
                    "reason": state.reason,
                    "run_seconds": state.seconds,
                }
            )
    return records


def publish(sheets: Sequence[Sheet], path: Path, console: Console) -> str:
    """Prints tables, writes them to a file as Markdown, and returns this."""
    for sheet in sheets:
        sheet.show(console)
    text = "\n".join(sheet.markdown() for sheet in sheets)
    write_whole(path, text)
    return text


def _quality_row(config: CompareConfig, record: dict[str, Any]) -> list[str]:
    head = [record["base"], record["strategy"]]
    remarks = [record["missing"], "own pre-training" if record["pretrained_apart"] else ""]
    seeds = "; ".join([f"{record['seeds']}", *filter(None, remarks)])
    if not record["seeds"]:
        return [*head, *[_NOTHING] * (6 + 2 * len(config.tests)), record["missing"]]
    rates = [
        _number(record[name], 2) + ("" if record[f"{name}_std"] is None else f" ± {record[f'{name}_std']:.2f}")
        for name in ("hr", "ndcg", "unseen", "validation", "interests")
    ]
    own = record["strategy"] == config.reference and record["base"] in (*config.bases, NO_BASE)
    tests = []
    for other in config.tests:
        for over in ("users", "seeds"):
            n = record.get(f"n_{over}_vs_{other}")
            both = (_p(record.get(f"holm_{over}_{name}_vs_{other}")) for name in ("hr", "ndcg"))
            tests.append(_NOTHING if not n else f"{' / '.join(both)} (n={n})")
    return [*head, *rates, _NOTHING if own else _number(record["ri"], 2), *tests, seeds]


def _number(value: float | None, digits: int) -> str:
    return _NOTHING if value is None else f"{value:.{digits}f}"


def _p(value: float | None) -> str:
    return _NOTHING if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"
