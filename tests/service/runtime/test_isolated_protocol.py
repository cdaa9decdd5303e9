"""Messages between the server and a child: packing of arrays, and the channel that carries them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import msgspec
import numpy as np
import pytest

from registry.rows import Array, Rows
from registry.signature import Output, Signature
from service.runtime import isolated_protocol, message_channel
from service.runtime.isolated_protocol import FromChild, ModelLoaded, RowOutputs, RunRows, Tensor
from service.runtime.message_channel import ChannelBroken

SIGNATURE = Signature(
    "classification", (), (Output("label", "string", (-1,)), Output("probabilities", "float64", (-1, 2)))
)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    first, second = socket.socketpair()
    with first, second:
        yield first, second


@pytest.mark.parametrize(
    "array",
    [
        np.array([[1.5, np.nan], [np.inf, -0.0]]),
        np.arange(6, dtype=np.float32).reshape(3, 2).T,
        np.array([2**63 - 1, -(2**63)]),
        np.array([True, False, True]),
        np.array(["é", None, ""], dtype=object),
        np.empty((0, 3)),
        np.empty(0, dtype=object),
        np.arange(4, dtype=">f8"),
    ],
    ids=lambda a: f"{a.dtype}{list(a.shape)}",
)
def test_an_array_arrives_as_it_was_sent(array: Array) -> None:
    packed = msgspec.msgpack.decode(msgspec.msgpack.encode(isolated_protocol.pack(array)), type=Tensor)
    received = isolated_protocol.unpack(packed)
    np.testing.assert_array_equal(received, array)
    assert received.dtype == array.dtype.newbyteorder("=")
    assert received.flags.writeable  # some estimators refuse read-only memory


def test_numpy_strings_arrive_as_objects() -> None:
    assert isolated_protocol.unpack(isolated_protocol.pack(np.array(["a", "bc"]))).tolist() == ["a", "bc"]


def test_a_dtype_that_no_signature_has_cannot_be_packed() -> None:
    with pytest.raises(TypeError, match="complex128"):
        isolated_protocol.pack(np.array([1j]))


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor("float64", (2,), b"\0" * 8),
        Tensor("float64", (-1, -1), b"\0" * 8),
        Tensor("float64", (2**40, 2**40), b""),
        Tensor("object", (1,), b"\0" * 8),
        Tensor("O", (1,), b"\0" * 8),
        Tensor("float64", (1,), ["1"]),
        Tensor("string", (1,), b"x"),
        Tensor("string", (2,), ["x"]),
    ],
)
def test_a_tensor_whose_shape_and_data_differ_is_rejected(tensor: Tensor) -> None:
    with pytest.raises(ChannelBroken):
        isolated_protocol.unpack(tensor)


def test_any_nonzero_byte_is_a_true_boolean() -> None:
    assert isolated_protocol.unpack(Tensor("bool", (2,), b"\x02\x00")).tolist() == [True, False]


def test_rows_are_sent_as_a_matrix_or_as_columns() -> None:
    matrix = isolated_protocol.unpack_rows(isolated_protocol.pack_rows(Rows(matrix=np.eye(2))))
    assert matrix.matrix is not None
    np.testing.assert_array_equal(matrix.matrix, np.eye(2))
    columns = isolated_protocol.unpack_rows(
        isolated_protocol.pack_rows(Rows(columns=(np.arange(2), np.array(["a", None], object))))
    )
    assert columns.columns is not None
    assert [c.tolist() for c in columns.columns] == [[0, 1], ["a", None]]


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("label", np.array([1, 2])),
        ("label", np.array(["a"])),
        ("probabilities", np.zeros((2, 3))),
        ("probabilities", np.zeros((2, 2), np.float32)),
        ("other", np.zeros(2)),
    ],
)
def test_outputs_that_differ_from_the_signature_are_rejected(name: str, array: Array) -> None:
    valid_outputs = {"label": np.array(["a", "b"]), "probabilities": np.zeros((2, 2))}
    packed = {key: isolated_protocol.pack(value) for key, value in valid_outputs.items()}
    assert list(isolated_protocol.unpack_outputs(RowOutputs(packed), SIGNATURE, 2)) == [
        "label",
        "probabilities",
    ]
    with pytest.raises(ChannelBroken):
        isolated_protocol.unpack_outputs(
            RowOutputs({**packed, name: isolated_protocol.pack(array)}), SIGNATURE, 2
        )


def test_a_message_larger_than_the_socket_buffer_is_received(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    large = isolated_protocol.pack_rows(Rows(matrix=np.random.default_rng(0).normal(size=(10_000, 50))))
    sender = threading.Thread(target=message_channel.send, args=(pair[0], large))
    sender.start()
    assert message_channel.receive(pair[1], RunRows, time.monotonic() + 10) == large
    sender.join()


def test_waiting_for_a_silent_peer_ends_at_the_deadline(pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(TimeoutError):
        message_channel.receive(pair[0], FromChild, time.monotonic() + 0.05)
    with pytest.raises(TimeoutError):
        message_channel.await_message(pair[0], time.monotonic() - 1)


def test_sending_to_a_peer_that_reads_nothing_ends_at_the_deadline(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    with pytest.raises(TimeoutError):
        message_channel.send(
            pair[0], RunRows(isolated_protocol.pack(np.zeros(10**7))), time.monotonic() + 0.05
        )


def test_a_closed_channel_raises_channel_broken(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[1].close()
    with pytest.raises(ChannelBroken):
        message_channel.receive(pair[0], FromChild)
    with pytest.raises(ChannelBroken):
        message_channel.send(pair[0], ModelLoaded())


@pytest.mark.parametrize("body", [b"\xc1", msgspec.msgpack.encode({"type": "Surprise"}), b""])
def test_a_message_of_another_kind_raises_channel_broken(
    pair: tuple[socket.socket, socket.socket], body: bytes
) -> None:
    pair[1].sendall(message_channel.HEADER.pack(len(body)) + body)
    with pytest.raises(ChannelBroken):
        message_channel.receive(pair[0], FromChild)


def test_a_length_above_the_limit_is_rejected_before_memory_is_allocated(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    pair[1].sendall(message_channel.HEADER.pack(1 << 60))
    with pytest.raises(ChannelBroken, match="bytes"):
        message_channel.receive(pair[0], FromChild)
