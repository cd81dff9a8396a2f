"""Shows what baselines reach."""

from collections.abc import Mapping, Sequence
from typing import Any

from dist_imsr.reporter import Reporter

_CAPTION = (
    "Tested on the users and with the metrics of a run's tests: hr and ndcg rank each user's latest interaction in the "
    "test span among all items; _unseen ranks those targets that are new to the user among items that are new to the "
    "user. Rates are fractions of the users."
)


def rates(tops: Sequence[int]) -> list[str]:
    """The names of the metrics that are shown of a baseline, for each N."""
    return [name.format(top) for top in tops for name in ("hr@{}", "ndcg@{}", "hr@{}_unseen")]


def mean_line(lines: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, float | None]:
    """The mean of each metric over the lines of one baseline that have it; None if none has."""
    found = {name: [line[name] for line in lines if line[name] is not None] for name in names}
    return {name: sum(values) / len(values) if values else None for name, values in found.items()}


def show(lines: Sequence[dict[str, Any]], tops: Sequence[int], title: str) -> None:
    """Prints a row for each baseline and tested span, and its mean over spans.

    Args:
        lines: of `dist_imsr.baselines.config.run_baselines`.
        tops: every N.
        title: of the table.
    """
    rows, names = list[dict[str, Any]](), rates(tops)
    for name in dict.fromkeys(line["strategy"] for line in lines):
        own = [line for line in lines if line["strategy"] == name]
        rows += [*own, {"strategy": name, "test_span": "mean", **mean_line(own, names)}]
    columns = ["strategy", "test_span", "users", *names, "decay", "train_seconds", "eval_seconds"]
    Reporter(shown=True).table(rows, columns, title, _CAPTION)
