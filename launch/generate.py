"""Writes planted drift as a raw log in the format of Taobao's UserBehavior.csv, of any size."""

import signal
import sys

from rich.console import Console

from dist_imsr.config import parse
from dist_imsr.data.generate import GenerateConfig, generate


def main() -> int:
    """Runs the command.

    Returns:
        0; 2 where arguments are refused, 1 where the machine fails, 130 after Ctrl-C.
    """
    config = parse(GenerateConfig, description=__doc__)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job that is ended cleans up as well
    try:
        rows = generate(config, Console(stderr=True))
    except KeyboardInterrupt:
        return _failed("stopped; nothing was written", 130)
    except ValueError as error:
        return _failed(str(error), 2)
    except OSError as error:
        return _failed(str(error), 1)
    print(f"{rows:,} rows written to {config.output}")
    return 0


def _failed(reason: str, status: int) -> int:
    print(f"generate.py: {reason}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
