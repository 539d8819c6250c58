import io

import pytest

from quaver.runtime.progress import Bar, Progress, duration, quiet


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_time_left_is_time_used_over_what_is_done():
    now = [0.0]
    bar = Bar(8, "capture", lambda line: None, clock=lambda: now[0])
    now[0] = 30.0
    bar.step(2)
    assert bar.line() == "capture  2/8  30.0 s, 1 min 30 s left"


def test_a_terminal_sees_one_line_that_is_redrawn():
    stream = Terminal()
    with Progress(stream).bar(2, "ranges") as bar:
        bar.drawn -= 1.0
        bar.step()
        bar.step()
    assert "ranges  1/2" in stream.getvalue() and stream.getvalue().count("\n") == 1
    assert stream.getvalue().splitlines()[-1].endswith(" s") and "2/2" in stream.getvalue()


def test_a_bar_makes_room_for_what_is_printed_amid_it():
    stream, plain = Terminal(), io.StringIO()
    for progress in (Progress(stream), Progress(plain)):
        progress.clear()
    assert (stream.getvalue(), plain.getvalue()) == ("\r\x1b[K", "")


def test_a_file_sees_one_line_at_the_end_even_when_the_work_fails():
    stream = io.StringIO()
    with pytest.raises(ZeroDivisionError), Progress(stream).bar(5, "stats") as bar:
        bar.step(3)
        raise ZeroDivisionError
    assert stream.getvalue().startswith("stats  3/5") and stream.getvalue().count("\n") == 1


def test_a_file_sees_a_line_every_half_minute():
    stream, now = io.StringIO(), [0.0]
    with Progress(stream).bar(100, "capture") as bar:
        bar.clock, bar.started, bar.drawn = lambda: now[0], 0.0, 0.0
        for now[0] in range(1, 101):
            bar.step()
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["30/100", "60/100", "90/100", "100/100"]


def test_quiet_says_nothing(capsys):
    progress = quiet()
    progress.say("x")
    with progress.bar(1, "y") as bar:
        bar.step()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.25, "4.2 s"), (185, "3 min 05 s"), (7620, "2 h 07 min"), (59.99, "60.0 s")]
)
def test_seconds_read_as_people_say_them(seconds, text):
    assert duration(seconds) == text
