"""Options of a command in groups: the fields of a dataclass, which the command gets as one object.

A command of many options shows them under headings: Typer's `rich_help_panel` of each, in
plain text, since bench's forty-odd in one list would be read by nobody.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, get_type_hints

from typer.core import TyperCommand

OPTIONS = "Options"


class Grouped(TyperCommand):
    """A command whose help has its options under their headings, in the order of the first of each."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                argument = param.param_type_name == "argument"
                heading = "Arguments" if argument else getattr(param, "rich_help_panel", None) or OPTIONS
                sections.setdefault(heading, []).append(record)
        for heading in sorted(sections, key=lambda heading: heading == OPTIONS):  # the general ones last
            with formatter.section(heading):
                formatter.write_dl(sections[heading])


def with_options(**groups: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of its parameters named here: each stands for the fields of a dataclass.

    Every field has a default, and what Typer needs in its annotation. The dataclass's docstring is
    the heading of its options.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        found = [
            p.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[p.name])
            for p in inspect.signature(command).parameters.values()
            if p.name not in groups
        ]
        for group in groups.values():
            kinds = get_type_hints(group, include_extras=True)
            for kind in kinds.values():
                kind.__metadata__[0].rich_help_panel = (group.__doc__ or OPTIONS).rstrip(".")
            found += [
                inspect.Parameter(
                    f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=kinds[f.name]
                )
                for f in fields(group)
            ]

        def run(**given: Any) -> None:
            for name, group in groups.items():
                given[name] = group(**{f.name: given.pop(f.name) for f in fields(group)})
            command(**given)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature(found)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in found}
        return run

    return decorate
