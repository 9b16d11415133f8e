"""What a user reads of an error: one line, fit for a terminal."""

import pytest

from mvitv2_det.errors import UserError, one_line, readable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, größer als 3×4", "plain text, größer als 3×4"),
        ("\x1b[31mred\x07\r", r"\x1b[31mred\x07\r"),
        ("lone \udc80 surrogate\x00", r"lone \udc80 surrogate\x00"),
        ("x" * 1000, "x" * 200 + "…" + "x" * 40),
        ("one\ntwo", "one\ntwo"),
    ],
)
def test_readable(text, shown):
    assert readable(text) == shown
    assert str(UserError(text)) == shown


def test_long_messages_say_what_is_left_out():
    assert one_line(UserError("w " * 1000)) == ("w " * 1000).strip()
    shown = one_line(UserError("word " * 1000))
    assert shown.startswith("word word") and shown.endswith("… (2999 characters more)")
    assert len(shown) < 2050


def test_one_line_of_an_error_and_of_a_workers():
    assert one_line(UserError("first\nsecond")) == "first second"
    trace = "Traceback:\n  x\nmvitv2_det.errors.UserError: the image is not one"
    assert one_line(RuntimeError(trace)) == "the image is not one"
    assert one_line(RuntimeError("other")) is None
