"""The coordination service of a pod in a separate process, through which the others learn of the death of process 0.

Inside process 0, where JAX starts it by default, it would die with that process, and the native clients would abort.
Arguments: address, number of processes, heartbeat timeout, shutdown timeout, seconds to stay after the starter's death.
"""

import os
import sys
import time

from jaxlib import _jax


def main() -> None:
    address, count, heartbeat, shutdown, linger = sys.argv[1:]
    service = _jax.get_distributed_runtime_service(
        address, int(count), heartbeat_timeout=int(heartbeat), shutdown_timeout=int(shutdown), recoverable=False
    )
    print("ready", flush=True)
    told = sys.stdin.readline().strip()
    if told == "end":
        service.shutdown()
    else:  # "leave": the starter ends at once, with its client; "": it is dead
        time.sleep(1.0 if told else float(linger))
    os._exit(0)


if __name__ == "__main__":
    main()
