"""Two processes of two devices each against one of four: the same numbers, and an end when one of them is killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from vitx import parallel

ROOT = Path(__file__).parents[2]
OPTIONS = (
    "--config.classifier.epochs=4",
    "--config.methods.compared=('rollout','transformer_attribution')",
    "--config.methods.fractions=(0.0,0.5)",
    "--config.stages=classifier,seeds,labels,affinity,masks,segmenter,methods",
)


def start(script: str, folder: Path, shared: Path, count: int, port: int) -> list[subprocess.Popen]:
    """Starts a script in `count` processes, with four devices in all, in float64."""
    environment = os.environ | {
        "JAX_ENABLE_X64": "1",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // count}",
        "XDG_CACHE_HOME": str(shared / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05",
    }
    command = [sys.executable, script, "--config", "configs/testing.py", "--workdir", str(folder)]
    command += [f"--config.data.root={shared / 'data'}", *OPTIONS]
    started = []
    for index in range(count):
        several = [f"--coordinator_address=127.0.0.1:{port}", f"--num_processes={count}"]
        several += [f"--process_id={index}"]
        started.append(
            subprocess.Popen(
                command + (several if count > 1 else []),
                cwd=ROOT,
                env=environment,
                stderr=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                text=True,
            )
        )
    return started


def finish(started: list[subprocess.Popen], seconds: float = 240) -> list[tuple[int, str]]:
    """Exit codes and error messages."""
    try:
        messages = [process.communicate(timeout=seconds)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, text) for process, text in zip(started, messages, strict=True)]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(happened: Callable[[], bool], running: list[subprocess.Popen]) -> None:
    end = time.monotonic() + 240
    while not happened():
        assert time.monotonic() < end and all(process.poll() is None for process in running)
        time.sleep(0.02)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One process's run; and that of two, of which one is killed in training and one in evaluation."""
    shared = tmp_path_factory.mktemp("processes")
    one, two = shared / "one", shared / "two"
    for script in ("train.py", "evaluate.py"):
        ((code, message),) = finish(start(script, one, shared, 1, 0))
        assert code == 0, message
    killed = {}
    begun = {
        "train.py": lambda: any((two / "classifier" / "checkpoints").glob("[0-9]*")),
        "evaluate.py": lambda: (two / "methods" / "batches" / "000001.npz").exists(),
    }
    for script, happened in begun.items():
        running = start(script, two, shared, 2, free_port())
        wait_for(happened, running)
        running[1].send_signal(signal.SIGKILL)
        killed[script] = finish(running)[0]
        for code, message in finish(start(script, two, shared, 2, free_port())):
            assert code == 0, message
    return {"one": one, "two": two, "killed": killed}


@pytest.mark.exhaustive
@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_the_other_process_of_a_killed_one_stops_and_says_so(
    runs: dict[str, Any], script: str
) -> None:
    code, message = runs["killed"][script]
    assert code == 1, message
    assert "another process of this run ended or is out of reach" in message
    assert "Start all processes again with the same --workdir" in message


@pytest.mark.exhaustive
def test_two_processes_compute_what_one_does(runs: dict[str, Any]) -> None:
    one, two = runs["one"], runs["two"]
    for stage in ("classifier", "affinity"):
        expected, got = (load_file(run / stage / "model.safetensors") for run in (one, two))
        for name, values in expected.items():
            assert values.dtype == np.float64
            np.testing.assert_allclose(got[name], values, rtol=0, atol=1e-9 * np.abs(values).max())
    for pattern, read in (
        ("seeds/*/*.npz", lambda path: np.load(path)["cues"]),
        ("labels/*/*.png", lambda path: np.asarray(Image.open(path))),
        ("masks/*/*.png", lambda path: np.asarray(Image.open(path))),
    ):
        files = sorted(path.relative_to(one) for path in one.glob(pattern))
        assert files and files == sorted(path.relative_to(two) for path in two.glob(pattern))
        for file in files:
            np.testing.assert_array_equal(read(two / file), read(one / file), err_msg=str(file))


@pytest.mark.exhaustive
@pytest.mark.parametrize("stage", ["classifier", "masks", "methods"])
def test_two_processes_have_the_scores_of_one(runs: dict[str, Any], stage: str) -> None:
    expected, got = (
        _numbers(json.loads((runs[name] / stage / "scores.json").read_text()))
        for name in ("one", "two")
    )
    assert expected.keys() == got.keys() and len(expected) > 3
    for name, value in expected.items():
        # Upsampled pixels are equal up to rounding, and average precision depends on their order.
        tolerance = 1e-4 if "map" in name or "precision_recall" in name else 1e-9
        assert got[name] == pytest.approx(value, abs=tolerance), name


def _numbers(value: Any, prefix: str = "") -> dict[str, float]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, inner in items for k, v in _numbers(inner, f"{prefix}.{key}").items()}
    return {prefix: value} if isinstance(value, int | float) else {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("host:1", None, 0), "belong together: give all three"),
        ((None, 2, None), "belong together"),
        (("host:1", 2, 2), r"--process_id 2 must be in \[0, 2\)"),
    ],
)
def test_half_a_description_of_the_processes_is_refused(given: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parallel.initialize(*given)


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], list[Any]]:
    """Calls a function as each of three processes in turn: what one sends is what the last round heard."""

    def call(function: Callable[[], Any]) -> list[Any]:
        sent: dict[int, list[np.ndarray]] = {}  # by each process, in order

        def allgather(part: np.ndarray) -> np.ndarray:
            mine = sent[jax.process_index()]
            mine.append(part)
            return np.stack([(heard.get(other) or mine)[len(mine) - 1] for other in range(3)])

        exchange = SimpleNamespace(
            process_allgather=allgather, sync_global_devices=lambda name: None
        )
        monkeypatch.setattr("vitx.parallel.processes.multihost_utils", exchange)
        monkeypatch.setattr("jax.process_count", lambda: 3)
        for _ in range(2):
            heard, sent, results = dict(sent), {}, []
            for index in range(3):
                monkeypatch.setattr("jax.process_index", lambda index=index: index)
                sent[index] = []
                results.append(function())
        return results

    return call


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_rows_come_back_in_order_whatever_their_number(three: Any, length: int) -> None:
    def work() -> Any:
        mine = parallel.share(range(length)) or [0]
        rows = {"a": np.array(mine, np.int64) + 2**40, "b": np.array(mine)[:, None] / 3}
        return parallel.gather_shares(rows, length)

    for rows in three(work):
        np.testing.assert_array_equal(rows["a"], np.arange(length) + 2**40)
        np.testing.assert_array_equal(rows["b"][:, 0], np.arange(length) / 3)


def test_totals_keep_every_bit_of_64(three: Any) -> None:
    def work() -> Any:
        own = parallel.process_shard()[0]
        return parallel.sum_over_processes(
            {
                "tables": np.full((2, 2), 2**40 + own),
                "loss": np.array(0.1 * own),
                "none": np.zeros((0, 2)),
            }
        )

    for found in three(work):
        np.testing.assert_array_equal(found["tables"], np.full((2, 2), 3 * 2**40 + 3))
        assert found["loss"] == 0.0 + 0.1 + 0.2 and found["none"].shape == (0, 2)
    for found in three(lambda: parallel.max_over_processes(parallel.process_shard()[0], False)):
        assert found == (2, 0)


def test_every_item_is_of_one_process(three: Any) -> None:
    shares = three(lambda: (parallel.barrier(), parallel.share(range(8)))[1])
    assert shares == [[0, 3, 6], [1, 4, 7], [2, 5]]


def test_alone_nothing_is_sent() -> None:
    rows = {"x": np.arange(3)}
    np.testing.assert_array_equal(parallel.gather_shares(rows, 3)["x"], rows["x"])
    assert parallel.sum_over_processes(2) == 2
    assert parallel.max_over_processes(3, True) == (3, True) and parallel.is_first_process()
    assert parallel.share(range(3)) == [0, 1, 2]
