"""A group of commands, one of which is meant when none is named."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

LIST = "list"


class ListByDefault(TyperGroup):
    """`trivium exports NAME` is `trivium exports list NAME`, and `trivium jobs` is `trivium jobs list`. Where
    a list takes no name, a word that is no command is a typo of one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if self._means_list(ctx, args):
            args = [LIST, *args]
        return super().parse_args(ctx, args)

    def _means_list(self, ctx: Any, args: list[str]) -> bool:
        if not args:
            return not self.no_args_is_help
        if args[0] in (*self.commands, *ctx.help_option_names):
            return False
        takes_name = any(p.param_type_name == "argument" for p in self.commands[LIST].params)
        return takes_name or args[0].startswith("-")
