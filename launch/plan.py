"""Plans a run without any device: memory, links and time, what fails first, and a dry run of one step.

Example: ``python launch/plan.py --items 2000000000 --users 500000000 --dim 64 --nodes 64 --gpus_per_node 8``
"""

import sys

from dist_imsr.config import parse
from dist_imsr.console import output_console
from dist_imsr.distributed.command import BAD_INPUT, FAILED
from dist_imsr.distributed.topology import quiet_libraries
from dist_imsr.planning.config import PlanConfig
from dist_imsr.planning.limits import Refused
from dist_imsr.planning.plan import make_plan
from dist_imsr.planning.report import show, write_json


def main(argv: list[str] | None = None) -> int:
    """Runs the command.

    Returns:
        The exit status: 0; 2 for a plan that does not fit, with one line that proposes one that does; 1 if the output
        cannot be written.
    """
    config = parse(PlanConfig, argv, description=__doc__)
    quiet_libraries()
    try:
        plan = make_plan(config)
    except Refused as refused:
        print(f"plan.py: {refused}", file=sys.stderr)
        return BAD_INPUT
    show(plan, output_console())
    if config.json:
        try:
            write_json(plan, config.json)
        except OSError as error:
            print(f"plan.py: json: {config.json} cannot be written: {error.strerror}", file=sys.stderr)
            return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
