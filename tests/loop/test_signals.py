"""The first signal asks, Ctrl-C after that insists, and the handlers found are put back."""

import os
import signal
import threading

import pytest

from espalier.loop.signals import Stopper


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_ctrl_c_after_it_insists(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    found = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    with Stopper() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested and stop.reason == number.name
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reason == number.name
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert {each: signal.getsignal(each) for each in found} == found
    assert capfd.readouterr().err.count(f"{number.name}: saving after this step") == 1


def test_handlers_are_put_back_after_an_error() -> None:
    found = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), Stopper():
        assert signal.getsignal(signal.SIGINT) != found
        _ = 1 / 0
    assert signal.getsignal(signal.SIGINT) == found


def test_other_threads_ask_without_handlers() -> None:
    found, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with Stopper() as stop:
            seen.append(signal.getsignal(signal.SIGTERM) == found)
            stop.request("time limit")
            stop.request("something later")
            seen.append(stop.reason)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True, "time limit"]
