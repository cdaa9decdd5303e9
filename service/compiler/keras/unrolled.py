"""Unroll recurrent layers while a model is converted: with an open number of rows, LiteRT has no loops."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def unrolled(model: Any, keras: Any) -> Iterator[None]:
    """Inside, the model's recurrent layers are unrolled; afterwards they are as before.

    Keras' unrolled form of a masked layer that goes backwards zeroes its outputs by the mask in forward
    order, its loop by the mask in backward order. Inside, both answer as the loop: the steps are reversed
    before the layer, which then goes forward.
    """
    backend = keras.src.backend
    layers = [layer for layer in model._flatten_layers() if hasattr(layer, "unroll")]
    before, rnn = [layer.unroll for layer in layers], backend.rnn
    try:
        backend.rnn = _forward(rnn, keras)
        for layer in layers:
            layer.unroll = True
        yield
    finally:
        backend.rnn = rnn
        for layer, unroll in zip(layers, before, strict=True):
            layer.unroll = unroll


def _forward(rnn: Any, keras: Any) -> Any:
    """Keras' function `rnn`, which never goes backwards in the unrolled form of a masked layer."""

    def run(step: Any, inputs: Any, initial: Any, **options: Any) -> Any:
        mask, steps = options.get("mask"), 0 if options.get("time_major") else 1
        if options.get("go_backwards") and options.get("unroll") and mask is not None:
            inputs = keras.tree.map_structure(lambda t: keras.ops.flip(t, axis=steps), inputs)
            options |= {"mask": keras.ops.flip(mask, axis=steps), "go_backwards": False}
        return rnn(step, inputs, initial, **options)

    return run
