"""Measures on this machine: bench.py BENCHMARK [--json FILE] [OPTIONS]; bench.py BENCHMARK --help lists the options."""

import sys

from dist_imsr.benchmarks import BENCHMARKS
from dist_imsr.benchmarks.all import run_all
from dist_imsr.benchmarks.report import show, write_json
from dist_imsr.config import parse
from dist_imsr.console import output_console


def main(argv: list[str]) -> int:
    """Runs one benchmark or all, prints the figures and writes them to the file of ``--json``.

    Args:
        argv: the benchmark's name and its options.

    Returns:
        The exit status: 2 without a benchmark's name, 1 where a rank failed, 130 after Ctrl-C.
    """
    name = argv[0] if argv else ""
    if name == "all":
        return run_all(argv[1:], output_console())
    if name not in BENCHMARKS:
        help_wanted = name in ("-h", "--help")
        names = ", ".join((*BENCHMARKS, "all"))
        print(__doc__, f"BENCHMARK is one of: {names}", file=sys.stdout if help_wanted else sys.stderr)
        return 0 if help_wanted else 2
    options = parse(BENCHMARKS[name].options, argv[1:])
    try:
        rows = [figure.row() for figure in BENCHMARKS[name].measure(options)]
    except RuntimeError as error:
        print(f"bench.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench.py: interrupted; nothing was written", file=sys.stderr)
        return 130
    show(rows, output_console())
    if options.json:
        write_json(rows, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
