"""One JAX set-up for the whole test run: CPU, 8 virtual devices, one compilation cache.

The environment is set before anything imports jax, so that subprocesses started by tests inherit it.
"""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is most of a test run's time; without LLVM's optimizations it is several times faster.
_FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}"
os.environ.setdefault("MPLBACKEND", "Agg")
# A test run leaves nothing in the user's home, neither compiled programs nor prepared data.
_SCRATCH = tempfile.mkdtemp(prefix="gradmix_jax_tests_")
atexit.register(shutil.rmtree, _SCRATCH, ignore_errors=True)
# Compiled programs stay in the system's temporary directory, where the next run finds them.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "gradmix_jax_tests_xla"))
os.environ.setdefault("TFDS_DATA_DIR", os.path.join(_SCRATCH, "tensorflow_datasets"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax
import pytest

# Broadcasting between ranks is always an accident in this code base, so make it an error.
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def programs():
    """A list that gains a name for every program compiled or read from the compilation cache."""
    names, listening = [], [True]

    def listen(event, seconds, fun_name="", **_):
        if listening and event == "/jax/core/compile/backend_compile_duration":
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    listening.clear()  # a listener cannot be removed


@pytest.fixture
def checkout(tmp_path):
    """The launch files, and fakes of the programs that they call."""
    from fake_checkout import Checkout

    return Checkout(tmp_path)
