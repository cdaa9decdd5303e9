"""A group of commands, one of which is meant when none is named."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

LIST = "list"


class ListByDefault(TyperGroup):
    """`trivium exports NAME` is `trivium exports list NAME`, and `trivium jobs` is `trivium jobs list`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        bare = not args and not self.no_args_is_help
        if bare or (args and args[0] not in (*self.commands, *ctx.help_option_names)):
            args = [LIST, *args]
        return super().parse_args(ctx, args)
