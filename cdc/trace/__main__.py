"""`python -m cdc.trace FILE`: one projection, for `project_in_process`."""

from __future__ import annotations

import sys
from pathlib import Path

from cdc.config import load
from cdc.errors import LakesyncError
from cdc.log import open_log
from cdc.trace.client import client
from cdc.trace.project import project


def main() -> int:
    """Exit code 0, or that of the error, which is printed as one line."""
    try:
        config = load(Path(sys.argv[1]))
        if config.trace is None:
            return 0
        log = open_log(config.log, config.name, config.log_settings())
        try:
            with client(config.trace) as opened:
                project(opened, config, log)
        finally:
            log.close()
    except LakesyncError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
