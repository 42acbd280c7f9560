"""Work in other processes: order, laziness, errors, and a process that dies."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.runtime.scripts import alive, started
from vitx.runtime.files import WorkdirError
from vitx.runtime.workers import in_processes, on_devices


def double(number: int) -> int:
    return 2 * number


def where(_: int) -> tuple[int, str]:
    return os.getpid(), jax.config.jax_platforms


def fail(number: int) -> int:
    if number == 2:
        raise ValueError("two is no good")
    return number


def die(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.slow
def test_results_come_in_order_from_processes_on_the_cpu() -> None:
    drawn = []

    def items() -> Iterator[int]:
        for number in range(12):
            drawn.append(number)
            yield number

    results = in_processes(double, items(), workers=2)
    assert next(results) == 0
    assert len(drawn) == 5  # two a process wait, and the one that came
    assert list(results) == list(range(2, 24, 2))
    places = list(in_processes(where, range(4), workers=1))
    assert len(set(places)) == 1
    assert places[0][0] != os.getpid() and places[0][1] == "cpu"


@pytest.mark.slow
def test_an_error_is_raised_as_it_is_and_a_death_says_what_to_do() -> None:
    results = in_processes(fail, range(5), workers=1)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two is no good"):
        next(results)
    with pytest.raises(WorkdirError, match=r"a worker process died.*same --workdir"):
        np.testing.assert_equal(list(in_processes(die, range(5), workers=1)), None)


def interrupt(number: int) -> int:
    os.kill(os.getpid(), signal.SIGINT)
    return number


@pytest.mark.slow
def test_ctrl_c_is_left_to_the_run() -> None:
    assert list(in_processes(interrupt, range(3), workers=1)) == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
def test_workers_end_with_a_killed_run() -> None:
    script = """
import itertools
from tests.runtime.test_workers import in_processes, where
if __name__ == "__main__":
    for pid, _ in in_processes(where, itertools.count(), workers=1):
        print(pid, flush=True)
"""
    with started(script) as run:
        worker = int(run.stdout.readline())
        assert alive(worker)
    end = time.monotonic() + 60
    while alive(worker):
        assert time.monotonic() < end, "the worker outlives its run"
        time.sleep(0.1)


def test_devices_share_the_work_in_order() -> None:
    drawn, devices = [], jax.local_devices()[:3]
    together = threading.Barrier(3, timeout=30)  # breaks unless three items are worked on at once

    def items() -> Iterator[int]:
        for number in range(12):
            drawn.append(number)
            yield number

    def add(number: int) -> jax.Array:
        together.wait()
        return jnp.asarray(np.float32(number)) + 1

    results = on_devices(add, items(), 1, devices)
    first = next(results)
    assert len(drawn) == 7  # two a thread wait, and the one that came
    found = [first, *results]
    np.testing.assert_array_equal([float(value) for value in found], np.arange(1, 13))
    assert {device for value in found for device in value.devices()} == set(devices)


def test_virtual_devices_of_a_cpu_count_once() -> None:
    found = list(on_devices(lambda number: jnp.full(1, number), range(4)))
    assert {device for value in found for device in value.devices()} == {jax.local_devices()[0]}


def test_an_error_on_a_device_is_raised_and_what_waits_is_dropped() -> None:
    begun = []

    def fail_late(number: int) -> int:
        begun.append(number)
        return fail(number)

    results = on_devices(fail_late, range(100), 1)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two is no good"):
        next(results)
    assert len(begun) < 6
