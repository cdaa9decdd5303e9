"""The losses that a Keras model was compiled with: they state what its outputs mean."""

from __future__ import annotations

from typing import Any

import msgspec


class OutputLoss(msgspec.Struct, frozen=True):
    """The loss of one output."""

    logits: bool = False  # a crossentropy `from_logits`: the output is taken before its softmax or sigmoid
    exclusive: bool = False  # a categorical loss: each row belongs to exactly one of the classes
    binary: bool = False  # a binary loss: each number of the output is a label of its own


class Losses(msgspec.Struct, frozen=True):
    """The losses by output: one for all, or one per output, by name or in order."""

    common: OutputLoss | None = None
    by_output: dict[str | int, OutputLoss] = {}

    def of(self, name: str, index: int) -> OutputLoss:
        if self.common is not None:
            return self.common
        return self.by_output.get(name) or self.by_output.get(index) or OutputLoss()


def read_losses(compiled: Any) -> Losses:
    """From the configuration's `compile_config`; custom losses state nothing."""
    loss = compiled.get("loss") if isinstance(compiled, dict) else None
    if isinstance(loss, list):
        return Losses(by_output={index: _read_loss(part) for index, part in enumerate(loss)})
    if isinstance(loss, dict) and "class_name" not in loss:
        return Losses(by_output={name: _read_loss(part) for name, part in loss.items()})
    return Losses(_read_loss(loss))


def _read_loss(loss: Any) -> OutputLoss:
    config = loss.get("config") if isinstance(loss, dict) else None
    kind = loss.get("class_name") if isinstance(loss, dict) else loss
    name = str(config if kind == "function" else kind).replace("_", "").lower()
    logits = isinstance(config, dict) and config.get("from_logits") is True
    return OutputLoss(
        logits=logits and name.endswith("crossentropy"),
        exclusive="categorical" in name,
        binary=name.startswith("binary"),
    )
