"""The registry of jobs, on its own: no Streamlit, no network."""

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from app.jobs import Job, Jobs
from modhifi.errors import UserError
from modhifi.progress import Progress


def endless(started: threading.Event) -> Callable[[Progress], None]:
    def work(progress: Progress) -> None:
        for done in range(100_000):
            progress(done, 100_000, "counting")
            started.set()
            time.sleep(0.001)

    return work


def over(job: Job) -> Job:
    assert job.wait(60), f"{job.title} did not end: {job.state}, {job.step}"
    return job


def test_a_job_reports_its_steps_and_keeps_its_result() -> None:
    jobs = Jobs()
    go_on, reached = threading.Event(), threading.Event()

    def work(progress: Progress) -> str:
        progress(1, 4, "reading")
        reached.set()
        assert go_on.wait(60)
        return "what came out"

    job = jobs.submit("k", "A job", "lane", work)
    assert reached.wait(60)
    assert (job.state, job.step, job.fraction, job.result) == ("running", "reading", 0.25, None)
    go_on.set()
    assert over(job).state == "done"
    assert job.result == "what came out"
    assert jobs.get("k") is job


def test_time_left_follows_from_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("app.jobs.time", SimpleNamespace(monotonic=lambda: now))
    job = Job("k", "A job", "lane")
    job._report(1, 4, "reading")
    assert job.remaining is None, "too early to say"
    now += 10
    assert job.remaining == pytest.approx(30)
    job._report(4, 4, "reading")
    assert job.remaining == 0
    job._report(0, 9, "another step")
    assert job.remaining is None


def test_cancel_stops_it_at_its_next_report_and_it_can_be_asked_for_again() -> None:
    jobs = Jobs()
    started = threading.Event()
    job = jobs.submit("k", "A job", "lane", endless(started))
    assert started.wait(60)
    job.cancel()
    assert over(job).state == "cancelled"
    assert job.error is None
    again = jobs.submit("k", "A job", "lane", lambda _: 3)
    assert again is not job
    assert over(again).result == 3


def test_a_job_that_does_not_hear_is_cancelled_all_the_same_and_its_result_dropped() -> None:
    jobs = Jobs()
    deaf, started = threading.Event(), threading.Event()

    def work(progress: Progress) -> str:
        started.set()
        assert deaf.wait(60)
        return "too late"

    job = jobs.submit("k", "A job", "lane", work)
    assert started.wait(60)
    job.cancel()
    assert over(job).state == "cancelled"
    assert job.working, "its worker has not come back"
    assert not jobs.while_idle(["k"], lambda: pytest.fail("what it works on was taken away"))
    again = jobs.submit("k", "A job", "lane", lambda _: "in time")
    assert again is not job
    deaf.set()
    assert over(again).result == "in time"
    assert (job.state, job.result, job.working) == ("cancelled", None, False)


def test_a_job_cancelled_while_it_waits_never_starts() -> None:
    jobs = Jobs()
    started = threading.Event()
    first = jobs.submit("first", "First", "lane", endless(started))
    ran: list[int] = []
    second = jobs.submit("second", "Second", "lane", lambda _: ran.append(1))
    assert started.wait(60)
    second.cancel()
    assert second.state == "cancelled", "at once, without waiting for its turn"
    assert jobs.running("") == [first]
    again = jobs.submit("second", "Second", "lane", lambda _: ran.append(2))
    first.cancel()
    assert over(first).state == "cancelled"
    assert over(again).state == "done"
    assert ran == [2]


def test_a_job_stops_when_nobody_who_asked_is_left() -> None:
    jobs = Jobs()
    started = threading.Event()
    job = jobs.submit("k", "A job", "lane", endless(started), "one")
    assert jobs.submit("k", "A job", "lane", endless(started), "two") is job
    assert started.wait(60)
    job.cancel("three")
    assert not job.stopping, "nobody else can stop it"
    job.cancel("one")
    job.cancel("one")
    assert not job.stopping
    assert (job.asked_by("one"), job.left_by("one"), job.asked_by("two")) == (False, True, True)
    assert jobs.submit("k", "A job", "lane", endless(started), "one") is job
    assert job.asked_by("one"), "who asks again is an owner again"
    job.cancel("two")
    assert not job.stopping
    job.cancel("one")
    assert over(job).state == "cancelled"
    assert jobs.submit("k", "A job", "lane", lambda _: 1, "two") is not job


def test_owners_of_a_waiting_job_withdraw_one_by_one() -> None:
    jobs = Jobs()
    started = threading.Event()
    first = jobs.submit("first", "First", "lane", endless(started))
    assert started.wait(60)
    waiting = jobs.submit("second", "Second", "lane", lambda _: 1, "one")
    jobs.submit("second", "Second", "lane", lambda _: 1, "two")
    waiting.cancel("one")
    assert waiting.state == "running"
    waiting.cancel("two")
    assert waiting.state == "cancelled"
    first.cancel()
    over(first)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError(28, "No space left on device", "/a/b"),
            "/a/b: no space left on the disk; free space or write elsewhere",
        ),
        (PermissionError(13, "Permission denied", "/a/b"), "/a/b: permission denied; check its permissions"),
        (MemoryError(), "not enough memory; use fewer samples, a smaller batch or a smaller network"),
    ],
)
def test_faults_of_the_machine_are_no_bugs(error: Exception, line: str, caplog: pytest.LogCaptureFixture) -> None:
    def work(progress: Progress) -> None:
        raise error

    job = over(Jobs().submit("k", "A job", "lane", work))
    assert (job.state, job.error) == ("error", line)
    assert "Traceback" not in caplog.text


def test_a_mistake_of_the_user_is_one_line() -> None:
    def work(progress: Progress) -> None:
        raise UserError("no file at\n  here; name another")

    job = over(Jobs().submit("k", "A job", "lane", work))
    assert (job.state, job.error) == ("error", "no file at here; name another")


def test_a_fault_of_ours_is_one_line_and_the_worker_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    jobs = Jobs()
    job = over(jobs.submit("k", "A job", "lane", lambda _: 1 // 0))
    assert job.state == "error"
    assert job.error is not None
    assert "ZeroDivisionError" in job.error
    assert "\n" not in job.error
    assert "Traceback" in caplog.text
    assert over(jobs.submit("next", "Next", "lane", lambda _: "fine")).result == "fine"
    assert over(jobs.submit("k", "A job", "lane", lambda _: "mended")).result == "mended"


def test_the_same_asked_twice_is_computed_once() -> None:
    jobs = Jobs()
    calls: list[int] = []
    gate = threading.Event()

    def work(progress: Progress) -> int:
        assert gate.wait(60)
        calls.append(1)
        return len(calls)

    asked: list[Job] = []
    threads = [threading.Thread(target=lambda: asked.append(jobs.submit("k", "A job", "lane", work))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gate.set()
    assert len({id(job) for job in asked}) == 1
    assert over(asked[0]).result == 1
    assert jobs.submit("k", "A job", "lane", work) is asked[0], "done: the result is still there"
    jobs.discard("k")
    assert over(jobs.submit("k", "A job", "lane", work)).result == 2


def test_one_network_has_one_worker_and_two_networks_have_two() -> None:
    jobs = Jobs()
    busy = {"a": 0, "b": 0}
    most = {"a": 0, "b": 0}
    together = threading.Barrier(2)

    def on(lane: str) -> Callable[[Progress], None]:
        def work(progress: Progress) -> None:
            busy[lane] += 1
            most[lane] = max(most[lane], busy[lane])
            together.wait(60)  # passes only while the other lane works too
            time.sleep(0.01)
            busy[lane] -= 1

        return work

    started = [jobs.submit(f"{lane}{i}", "A job", lane, on(lane)) for i in range(3) for lane in "ab"]
    assert {over(job).state for job in started} == {"done"}
    assert most == {"a": 1, "b": 1}


def test_a_page_finds_the_latest_of_its_kind() -> None:
    jobs = Jobs()
    first, second = (over(jobs.submit(f"measure study {i}", "A job", "lane", lambda _: None)) for i in (1, 2))
    other = over(jobs.submit("build study 1", "Another", "lane", lambda _: None))
    assert jobs.latest("measure study ") is second
    assert jobs.latest("build ") is other
    assert jobs.latest("forget ") is None
    jobs.discard(first.key)
    again = over(jobs.submit(first.key, "A job", "lane", lambda _: None))
    assert jobs.latest("measure study ") is again


def test_old_results_are_let_go() -> None:
    jobs = Jobs(keep=3)
    for i in range(10):
        over(jobs.submit(f"k{i}", "A job", "lane", lambda _: None))
    assert jobs.get("k0") is None
    assert jobs.get("k9") is not None
