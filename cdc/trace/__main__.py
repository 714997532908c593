"""`python -m cdc.trace FILE`: one projection, for `cdc.trace.child`. One line of JSON: what was done, or the error."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson

from cdc import crash
from cdc.config import load
from cdc.errors import LakesyncError, TraceError, UnexpectedError
from cdc.log import open_log
from cdc.trace.client import client
from cdc.trace.project import project


def main() -> int:
    """Exit code 0, or that of the error."""
    done: dict[str, Any] = dict.fromkeys(("epoch", "records", "commits", "rows", "seconds"), 0)
    folder = None
    try:
        config = load(Path(sys.argv[1]))
        folder = config.state
        if config.trace is not None:
            with (
                closing(open_log(config.log, config.name, config.log_settings())) as log,
                client(config.trace) as opened,
            ):
                found = project(opened, config, log)
                done = {name: getattr(found, name) for name in done}
    except LakesyncError as error:
        _say(error.to_dict())
        return error.exit_code
    except OSError as error:
        hint = "the pipeline goes on; the trace catches up later"
        _say(TraceError(f"the projection failed: {error.strerror or type(error).__name__}", hint=hint).to_dict())
        return TraceError.exit_code
    except Exception as error:  # its message may hold a row's values
        _say(crash.record(error, folder, "the projection").to_dict())
        return UnexpectedError.exit_code
    _say(done | {"cpu_s": time.process_time()})
    return 0


def _say(words: dict[str, Any]) -> None:
    sys.stdout.write(orjson.dumps(words).decode() + "\n")


if __name__ == "__main__":
    sys.exit(main())
