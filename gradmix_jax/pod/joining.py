"""Join the processes of a pod or cluster."""

import atexit
import contextlib
import errno
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax

from gradmix_jax.pod import watching

# Seconds that processes wait for each other at the start.
JOIN = 300
# Seconds that the coordination service outlives its starter, so that the others can notice the loss.
LINGER = watching.LOST_AFTER + 5
_SERVICE = pathlib.Path(__file__).with_name("service.py")


def initialize(coordinator: str = "", num_processes: int | None = None, process_id: int | None = None) -> None:
    """Join the processes of a pod or cluster and start watching them; call this before anything else touches JAX.

    Missing arguments come from the environment: TPU metadata, Slurm, Open MPI or Kubernetes, as JAX detects them.

    Args:
      coordinator: HOST:PORT of process 0; "": detected.
      num_processes: number of processes on all hosts; None: detected.
      process_id: index of this process, 0 ... num_processes - 1; None: detected.

    Raises:
      ValueError: no other processes are found, they do not join, or the port is in use; one line.
    """
    _check(coordinator, num_processes, process_id)
    if "JAX_COORDINATOR_ADDRESS" not in os.environ and not coordinator and num_processes is not None:
        raise ValueError("--num_processes needs --coordinator, HOST:PORT of process 0.")
    # Its SIGTERM handler could not be removed again; `agreement.Stopping` stops runs instead.
    jax.config.update("jax_enable_preemption_service", False)
    # For CPUs, one program at a time: after the death of a process, Gloo aborts if a second program is running.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    given = dict(coordinator_address=coordinator or None, num_processes=num_processes, process_id=process_id)
    try:
        with _service_outside():
            jax.distributed.initialize(**given, initialization_timeout=JOIN, shutdown_timeout_seconds=60)
    except ValueError as error:
        if isinstance(error, ServiceError):
            raise
        raise ValueError(
            f"--multihost finds no other processes ({str(error).rstrip('.')}); use it on a TPU pod, under Slurm, "
            "Open MPI or Kubernetes, or give --coordinator, --num_processes and --process_id."
        ) from error
    except RuntimeError as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"--multihost: the other processes did not join within {JOIN} s ({said}).") from error
    if jax.process_count() > 1:
        watching.start()
        # Until training installs its own handler. Otherwise the others would wait until they miss this process.
        signal.signal(signal.SIGTERM, lambda *_: watching.leave("told to end (SIGTERM)", 128 + signal.SIGTERM))
        atexit.register(watching.stop)  # before JAX disconnects


class ServiceError(ValueError):
    """The coordination service cannot be started."""


def _check(coordinator: str, num_processes: int | None, process_id: int | None) -> None:
    found = re.fullmatch(r"\S+:([0-9]{1,5})", coordinator)
    if coordinator and not (found and 0 < int(found[1]) < 2**16):
        raise ValueError(f"--coordinator must be HOST:PORT of process 0, got {coordinator!r}.")
    if num_processes is not None and num_processes < 1:
        raise ValueError(f"--num_processes must be a positive integer, got {num_processes}.")
    if process_id is not None and not 0 <= process_id < (num_processes or process_id + 1):
        most = f"from 0 to {num_processes - 1}" if num_processes else "at least 0"
        raise ValueError(f"--process_id must be an integer {most}, got {process_id}.")


@contextlib.contextmanager
def _service_outside() -> Iterator[None]:
    """Make JAX start `Service` instead of the service inside this process."""
    from jax._src import distributed  # no public name for it

    inside = distributed._jax.get_distributed_runtime_service
    distributed._jax.get_distributed_runtime_service = Service
    try:
        yield
    finally:
        distributed._jax.get_distributed_runtime_service = inside


class Service:
    """The coordination service in a separate process, with the interface that JAX uses.

    Raises:
      ServiceError: it cannot listen on the address.
    """

    def __init__(self, address: str, count: int, *, heartbeat_timeout: int, shutdown_timeout: int, recoverable: bool):
        _wait_for_port(address)
        numbers = (count, heartbeat_timeout, shutdown_timeout, LINGER)
        # In a separate session, because Ctrl-C is meant for the processes that it serves.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_SERVICE), address, *map(str, numbers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        if self._process.stdout.readline() != "ready\n":
            raise ServiceError(f"--multihost: the coordinator cannot listen on {address}; choose another port.")

    def leave(self) -> None:
        """Let the service end shortly after this process, which must end at once."""
        self._tell("leave")

    def _tell(self, word: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(word + "\n")
            self._process.stdin.close()

    def shutdown(self) -> None:
        """End the service."""
        self._tell("end")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)


def _wait_for_port(address: str) -> None:
    """Wait for a port that the service of an earlier run may still hold."""
    host, _, port = address.rpartition(":")
    deadline, told = time.monotonic() + LINGER + 5, False
    while problem := _problem_of(host.strip("[]"), int(port)):
        if problem.errno != errno.EADDRINUSE or time.monotonic() > deadline:
            said = f"the coordinator cannot listen on port {port} ({problem.strerror})"
            raise ServiceError(f"--multihost: {said}; end the process that uses it, or choose another port.")
        if not told:
            print(f"port {port} is in use; waiting up to {LINGER + 5:.0f} s for it", file=sys.stderr)
            told = True
        time.sleep(1)


def _problem_of(host: str, port: int) -> OSError | None:
    try:
        family: Any = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(1)  # with SO_REUSEADDR, only this call fails if another process listens
    except OSError as error:
        # Without IPv6, the service listens on IPv4 only.
        return None if error.errno == errno.EAFNOSUPPORT else error
    return None
