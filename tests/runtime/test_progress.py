import io
import threading
import time

import pytest

from vitx.runtime import progress as module
from vitx.runtime.progress import busy, progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """The seconds that the lines show; they come as soon as this clock has gone on."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module, "_SECONDS", 0.005)
    return now


def lines_of(file, count):
    """The lines of a file as soon as there are so many; fails after a while."""
    for _ in range(2000):
        if len(lines := file.getvalue().splitlines()) >= count:
            return lines
        threading.Event().wait(0.005)
    raise AssertionError(f"{count} lines are expected: {file.getvalue()!r}")


def test_lines_come_whether_or_not_items_advance(clock):
    file = io.StringIO()
    with progress(100, "seeds", compiles=True, file=file) as bar:
        for seconds in (10, 20):
            clock[0] = 100 + seconds
            assert lines_of(file, seconds // 10)[-1] == f"seeds: compiling, {seconds} s"
        bar.advance(20, loss=0.25)
        clock[0] = 130
        assert lines_of(file, 3)[-1] == "seeds: 20/100, 30 s, 120 s left, loss 0.25"
        clock[0] = 140
        assert lines_of(file, 4)[-1] == "seeds: 20/100, 40 s, 160 s left, loss 0.25"
        bar.advance(80)
    assert file.getvalue().splitlines()[-1] == "seeds: 100/100, 40 s, loss 0.25"


def test_lines_are_sparse(monkeypatch):
    """With the real clock: at most one in an interval, however often items advance."""
    monkeypatch.setattr(module, "_SECONDS", 0.2)
    file, began = io.StringIO(), time.monotonic()
    with progress(500, "reading", file=file) as bar:
        for _ in range(500):
            bar.advance()
            time.sleep(0.001)
    most = (time.monotonic() - began) / 0.2 + 1  # and the last one
    assert 2 <= len(file.getvalue().splitlines()) <= most


def test_a_resumed_stage_says_from_where(clock):
    file = io.StringIO()
    with progress(400, "classifier", start=120, item="step", compiles=True, file=file) as bar:
        clock[0] += 10
        bar.advance(280)
    assert file.getvalue().splitlines()[0] == "classifier: resumes at step 120 of 400"
    assert file.getvalue().splitlines()[-1] == "classifier: 400/400, 10 s"
    with progress(4, "masks val", start=4, compiles=True, file=(file := io.StringIO())):
        pass
    assert file.getvalue().splitlines() == [
        "masks val: resumes at image 4 of 4",
        "masks val: 4/4, 0 s",
    ]
    with progress(4, "seeds val", start=1, file=(file := Terminal())):
        pass
    assert file.getvalue().startswith("seeds val: resumes at image 1 of 4\n")


def test_work_without_a_count_shows_while_nothing_within_it_does(clock):
    file, inner = io.StringIO(), io.StringIO()
    with busy("explain: running", file=file):
        clock[0] += 10
        assert lines_of(file, 1) == ["explain: running, 10 s"]
        with progress(2, "explain", file=inner):
            clock[0] += 10
            lines_of(inner, 1)
        with progress(2, "explain", file=Terminal()):  # its bar is all that is to be seen
            clock[0] += 10
            threading.Event().wait(0.05)
        assert file.getvalue().splitlines() == ["explain: running, 10 s"]
        clock[0] += 10
        assert lines_of(file, 2)[-1] == "explain: running, 40 s"
    assert lines_of(inner, 2) == ["explain: 0/2, 10 s"] * 2


@pytest.mark.parametrize("show", [lambda f: busy("x", file=f), lambda f: progress(1, "x", file=f)])
def test_no_thread_outlives_its_work(show):
    before = set(threading.enumerate())
    with pytest.raises(KeyError), show(io.StringIO()):
        (thread,) = set(threading.enumerate()) - before
        assert thread.daemon  # nor keeps a process alive that ends without it
        raise KeyError
    assert set(threading.enumerate()) == before
    assert not module._HEARTBEAT._blocks


def test_progress_in_a_terminal_is_a_bar():
    file = Terminal()
    with progress(4, "seeds", compiles=True, file=file) as bar:
        threading.Event().wait(0.5)  # it is drawn four times a second
        assert "seeds: compiling" in file.getvalue() and "0/4" in file.getvalue()
        for _ in range(4):
            bar.advance(loss=0.25)
    last = file.getvalue()[file.getvalue().rindex("seeds") :]
    assert "4/4" in last and "loss 0.25" in last and "compiling" not in last
