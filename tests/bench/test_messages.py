"""What a worker answers arrives as it was, and as nothing but that."""

import dataclasses
import hashlib
import io
from typing import get_args

import pytest

from zipfmax_bench import messages
from zipfmax_reference.contestants import wire
from zipfmax_reference.runs.case import Case

REPLIES = [
    messages.Timed(1.0, float("inf"), False),
    messages.Loaded((3, 0, 1), replayed=True),
    messages.Kept((("loss", "float64 in place of float32"),)),
    messages.Work(flops=2**60, delegates=None),
    messages.PartTimes(1.5, (1.0, 0.5), (2, 3), 4),
    messages.Compared(({"tensor": "loss", "error": 0.5, "where": None},)),
    messages.Lacking("no GPU"),
]


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: type(reply).__name__)
def test_a_reply_arrives_as_it_was(reply):
    sent = wire.encoded(messages.encoded(reply))
    assert messages.decoded(wire.receive(io.BytesIO(sent))) == reply


@pytest.mark.parametrize(
    "message",
    [
        None,
        ["Timed"],
        ["Judge", {}],
        ["Timed", {"seconds": "soon", "wall_s": 1.0}],
        ["Timed", {"seconds": 1.0}],
        ["Timed", [1.0, 1.0]],
        [["Timed"], {}],
    ],
    ids=str,
)
def test_what_is_no_reply_is_refused(message):
    with pytest.raises(ValueError, match=r"not a worker's reply|validation error"):
        messages.decoded(message)


def test_a_changed_message_has_another_protocol_number():
    fields = {
        message.__name__: [(field.name, str(field.type)) for field in dataclasses.fields(message)]
        for message in (*get_args(messages.Request), *get_args(messages.Reply), Case)
    }
    found = hashlib.sha256(repr(sorted(fields.items())).encode()).hexdigest()[:12]
    assert (messages.PROTOCOL, found) == (3, "42179789e9c3"), "raise PROTOCOL with every change of a message"
