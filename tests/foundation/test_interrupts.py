"""foundation/interrupts.py: an interrupt while libraries load is one line, and every other error keeps its traceback."""

import sys
from types import TracebackType

import pytest

from foundation.interrupts import one_line_if_interrupted


def test_one_line_of_an_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    usual: list[type[BaseException]] = []

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        usual.append(kind)

    monkeypatch.setattr(sys, "excepthook", hook)
    with one_line_if_interrupted():
        pass
    with pytest.raises(ImportError), one_line_if_interrupted():
        raise ImportError
    assert sys.excepthook is hook
    with pytest.raises(KeyboardInterrupt), one_line_if_interrupted():
        raise KeyboardInterrupt
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err == "stopped while loading; nothing was written\n"
    sys.excepthook(ValueError, ValueError(), None)
    assert usual == [ValueError]
