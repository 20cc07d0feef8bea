from evotune import terminal
from evotune.terminal import Terminal


def test_the_time_that_is_left_is_told_from_what_was_done_in_this_call(monkeypatch, capsys):
    clock = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: clock[0])
    with Terminal() as shown:
        clock[0] += 10
        shown.on_progress(41, 50)  # 40 of them were found done
        clock[0] += 10
        shown.on_progress(45, 50)
    assert capsys.readouterr().err.splitlines() == ["41/50  ETA 1:30", "45/50  ETA 0:20"]
