"""Evaluates a finished run: ``--drift_truth true`` compares it with the interests that its data were planted with."""

import json
import sys

from rich.table import Table

from dist_imsr.config import parse
from dist_imsr.console import output_console
from dist_imsr.evaluation.planted import EvaluateConfig, compare_with_truth


def main(argv: list[str]) -> int:
    """Runs the command.

    Args:
        argv: the arguments.

    Returns:
        0; 2 where the run, its data or its exported spans are missing.
    """
    config = parse(EvaluateConfig, argv, description=__doc__)
    try:
        rows = compare_with_truth(config)
        if config.json:
            config.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
    except (ValueError, OSError) as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    table = Table(*rows[0], title=f"{config.run_dir}: found against planted")
    for row in rows:
        table.add_row(*("" if value is None else _shown(value) for value in row.values()))
    output_console().print(table)
    return 0


def _shown(value: float | int) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
