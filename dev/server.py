"""One server process with a folder and a port of its own: what MySQL and Kafka have in common."""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from dev import warden
from dev.errors import SetUpError

# Below the range from which the kernel takes ports for outgoing connections, so that a server that was killed finds
# its port free when it comes back.
PORTS = range(15_000, 32_000)

POLL_S = 0.05
PORT_TRIES = 5


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on at the moment."""
    for _ in range(200):
        port = random.choice(PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise SetUpError("no free TCP port on 127.0.0.1", f"looked in {PORTS.start} to {PORTS.stop - 1}; end some servers")


class Server(ABC):
    """A server as a context manager: `start()` on entering, `close()` on leaving.

    `folder`: where its files live. By default one of its own under the system's temporary folder, removed by
    `close()`; a given one is made where needed, kept, and found again by the next server that is given it.

    `stop()`, `kill()` and `start()` may be called any number of times in between; port and data stay the same.
    """

    name = "server"
    start_timeout_s = 60.0
    stop_timeout_s = 30.0

    def __init__(self, folder: Path | None = None) -> None:
        self._owns_folder = folder is None
        if folder is None:
            # Not under a test's own folder: a unix socket's path may have 107 bytes, and pytest's are longer.
            self.folder = Path(tempfile.mkdtemp(prefix=f"lakesync-{self.name}-"))
            warden.watch_folder(self.folder)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self.folder = folder.resolve()
        self.port = free_port()
        self.log = self.folder / f"{self.name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._started_before = False

    # what a kind of server defines

    @abstractmethod
    def _prepare(self) -> None:
        """Lay out the folder; called before each start, so it looks before it writes."""

    @abstractmethod
    def _command(self) -> Sequence[str]:
        """The command line, for the present port."""

    def _environment(self) -> Mapping[str, str] | None:
        """The environment; None to inherit."""
        return None

    @abstractmethod
    def _answers(self) -> bool:
        """Whether it serves its clients now."""

    def _port_was_taken(self) -> bool:
        """Whether the log of a failed start says that another process has the port."""
        return "Address already in use" in self._log_tail(200)

    def _after_first_start(self) -> None:  # noqa: B027 (most have nothing to do)
        """Work to do once, when it answers for the first time."""

    # life

    @property
    def pid(self) -> int:
        """The process id of the running server. Raises RuntimeError when it does not run."""
        if self._process is None:
            raise RuntimeError(f"{self.name} on port {self.port} does not run")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process is there; it may still be starting up."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start and wait until it answers. Does nothing when it runs. Raises SetUpError when it does not come up."""
        if self.running:
            return self
        self._forget()
        for attempt in range(PORT_TRIES):
            self._prepare()
            if self._launch():
                break
            # Another process may have taken the port between our look and the server's bind. Once clients know the
            # port it cannot move any more.
            if self._started_before or not self._port_was_taken() or attempt == PORT_TRIES - 1:
                raise SetUpError(
                    f"{self.name} did not start on 127.0.0.1:{self.port}; the end of its log:\n{self._log_tail(25)}",
                    f"the whole log is {self.log}" if not self._owns_folder else "give it a folder to keep its log",
                )
            self.port = free_port()
        if not self._started_before:
            self._started_before = True
            self._after_first_start()
        return self

    def _launch(self) -> bool:
        """Start the process; whether it came to answer before its time was up."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                list(self._command()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=None if (environment := self._environment()) is None else dict(environment),
                cwd=self.folder,
                start_new_session=True,  # an interrupt at the terminal is for its owner, who then ends it
            )
        warden.watch(self._process.pid)
        deadline = time.monotonic() + self.start_timeout_s
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                self._forget()
                return False
            if self._answers():
                return True
            time.sleep(POLL_S)
        self.kill()
        return False

    def stop(self) -> None:
        """Shut down cleanly (SIGTERM) and wait; by force after `stop_timeout_s`. Data and port stay."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(self.stop_timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._forget()

    def kill(self) -> None:
        """End it by SIGKILL and wait until it is gone. Data and port stay."""
        if self._process is None:
            return
        self._process.kill()
        self._forget()

    def _forget(self) -> None:
        if self._process is not None:
            self._process.wait()
            warden.unwatch(self._process.pid)
            self._process = None

    def close(self) -> None:
        """End it and remove the folder, if that is its own. By force: nobody reads the data any more."""
        if self._owns_folder:
            self.kill()
            shutil.rmtree(self.folder, ignore_errors=True)
            warden.unwatch_folder(self.folder)
        else:
            self.stop()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _log_tail(self, lines: int) -> str:
        if not self.log.exists():
            return "(no log)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
