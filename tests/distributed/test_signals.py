"""Signals are recorded while they are caught, in the training process and its data workers."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import textwrap
from pathlib import Path

import forked
import pytest
from lightning.pytorch import Callback
from line import Line, loader, quiet
from torch.distributed import HashStore
from worker import work

from autotimm.distributed import agreement, signals
from autotimm.distributed.agreement import Agreement
from autotimm.streaming.workers import signals_blocked


def test_the_first_signal_is_recorded_and_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in signals.STOPS]
    with signals.caught(ends=True):
        assert signals.received() == 0
        os.kill(os.getpid(), signal.SIGUSR2)
        with signals.caught():  # a fit within the command line
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received() == signal.SIGUSR2
        os.kill(os.getpid(), signal.SIGTERM)
    assert [signal.getsignal(number) for number in signals.STOPS] == before
    with signals.caught():
        assert signals.received() == 0


def test_a_signal_before_a_release_takes_its_usual_effect() -> None:
    with signals.caught():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signals.release()
        assert signals.received() == 0  # the signal has had its effect
    with signals.caught():
        signals.release()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_an_unhandled_signal_takes_its_usual_effect_at_the_end() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), signals.caught():
        with signals.caught():  # a fit within
            os.kill(os.getpid(), signal.SIGINT)
        assert signals.received() == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) == before
    with pytest.raises(ZeroDivisionError), signals.caught():
        os.kill(os.getpid(), signal.SIGTERM)
        raise ZeroDivisionError


@pytest.mark.parametrize("stage", ["on_train_end", "teardown"])
def test_a_script_does_not_go_on_after_a_fit_with_a_late_signal(stage: str, tmp_path: Path) -> None:
    def late(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    callback = Callback()
    setattr(callback, stage, late)
    trainer = quiet(tmp_path, max_steps=1, callbacks=[callback], logger=[])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(Line(), loader())
    assert trainer.global_step == 1
    assert (tmp_path / "version_0" / "checkpoints" / "last.ckpt").exists()


def test_the_same_signal_once_more_ends_the_process_at_once() -> None:
    script = """
        import os, signal, time
        from autotimm.distributed import signals
        signals.ECHO = 0.5
        with signals.caught():
            try:
                for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR2):
                    os.kill(os.getpid(), number)
                time.sleep(0.6)
                os.kill(os.getpid(), signal.SIGINT)
                print("lives", flush=True)
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                print("cleans up", flush=True)
    """
    done = forked.run("-c", textwrap.dedent(script))
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stdout == "lives\n"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_only_its_parent_ends_a_worker(method: str) -> None:
    context = multiprocessing.get_context(method)
    ready = context.Event()
    worker = context.Process(target=work, args=(ready,), daemon=True)
    with signals_blocked(context):
        worker.start()
    assert ready.wait(120)
    for number in signals.STOPS:
        subprocess.run(["kill", f"-{int(number)}", str(worker.pid)], check=True)
    worker.join(1)
    assert worker.is_alive()
    worker.terminate()
    worker.join(60)
    assert worker.exitcode == 0


def test_a_rank_learns_of_another_ranks_signal_without_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = HashStore()
    one, other = Agreement(store=store), Agreement(store=store)
    monkeypatch.setattr(agreement, "LOOK", 0.0)
    with signals.caught(ends=True):
        assert not one.signalled() and not other.signalled()
        os.kill(os.getpid(), signal.SIGTERM)
        assert one.signalled() and one.answer() == signal.SIGTERM
    with signals.caught():  # as in the process of another rank
        assert other.signalled() and other.answer() == 0
