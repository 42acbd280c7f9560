"""What every test runs under: strict JAX on eight virtual CPU devices.

Third-party code is imported here once, before warnings are errors, where it warns while importing.
"""

import os

# Both are read when JAX starts its backend, so they are set before anything imports it, and
# subprocesses of a test inherit them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_DEVICES = "--xla_force_host_platform_device_count=8"
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    # Tests compile thousands of small programs and run each a few times.
    _FAST = "--xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES} {_FAST}".strip()

from collections.abc import Iterator  # noqa: E402

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Deterministic and without a deadline: a first example compiles, and a slow machine is no bug.
hypothesis.settings.register_profile(
    "vitx",
    deadline=None,
    derandomize=True,
    max_examples=15,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("vitx")


# Files that take a minute or more, longest first, so that no worker is left alone with one at the end.
_LONG = (
    "test_processes",
    "test_golden",
    "test_docs",
    "test_soak",
    "test_explain",
    "test_imagenet_tables",
    "test_comparison",
    "test_stages",
    "test_benchmarks",
    "test_own_data",
    "test_crf_lattice",
    "test_optimizer",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; within a file the order stays. What is exhaustive is slow."""
    for item in items:
        if item.get_closest_marker("exhaustive"):
            item.add_marker("slow")
    rank = {name: place for place, name in enumerate(_LONG)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(autouse=True, scope="module")
def _forget_programs() -> Iterator[None]:
    """Frees a file's compiled programs: each maps memory, and the kernel limits a process's maps."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def float64() -> Iterator[None]:
    """A file's tests and fixtures with 64-bit types: `pytestmark = pytest.mark.usefixtures("float64")`."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def x64() -> Iterator[None]:
    """Runs one test with 64-bit types, as if jax_enable_x64 had been set."""
    with jax.enable_x64(True):
        yield
