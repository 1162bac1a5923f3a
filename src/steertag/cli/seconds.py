"""The type of every option that is a time."""

from __future__ import annotations

import math

import click

YEAR = 365 * 86400.0


class Seconds(click.FloatRange):
    """A number of seconds, at most a year: neither `nan` nor `inf`, for which no timer can wait."""

    def __init__(self, min: float, *, min_open: bool = False) -> None:
        super().__init__(min=min, max=YEAR, min_open=min_open)

    def convert(
        self, value: float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value} is no time; write a number of seconds", param, ctx)
        return seconds
