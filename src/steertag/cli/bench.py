"""`stag bench`."""

from __future__ import annotations

import json
import re
from typing import Any, Final

import click

from steertag.cli.device import Network, family_options
from steertag.cli.interrupt import keep_interrupts
from steertag.cli.record import pcap_option

_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_MAX_SIZE: Final = 1 << 30
_DEFAULT_SIZE: Final = 64 * 1024
_DEFAULT_LATENCY_SIZE: Final = 8


class Octets(click.ParamType[int]):
    """A number of octets: 64, 4K, 1M, 1GiB (powers of 1024)."""

    name = "size"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+)([kmg]?)(i?b)?", value.strip().lower())
        if match is None:
            self.fail(f"{value!r} is no size; write 64, 4K, 1M or the like", param, ctx)
        size = int(match[1]) * _UNITS[match[2]]
        if not 1 <= size <= _MAX_SIZE:
            self.fail(f"{value} is out of range; 1 octet to 1G", param, ctx)
        return size


@click.command()
@click.argument("op", type=click.Choice(["write", "read", "send"]))
@click.option("-s", "--size", type=Octets(), help="Octets a message (default 64K; --lat 8).")
@click.option(
    "-n",
    "--iters",
    type=click.IntRange(1),
    help="Messages in all (default: half a second a round).",
)
@click.option("--lat", is_flag=True, help="Latency: one message at a time and its echo.")
@click.option("--no-crc", is_flag=True, help="No CRC32C in the FPDUs.")
@click.option(
    "-l",
    "--post-list",
    type=click.IntRange(1, 128),
    help="Requests posted with one call (default 32 below 8K, else 1).",
)
@click.option("--poll", is_flag=True, help="Busy-wait on the RDMA side instead of sleeping.")
@click.option(
    "-r", "--rounds", type=click.IntRange(1, 100), default=5, show_default=True,
    help="Rounds of each, in turns; figures are medians.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@pcap_option
@family_options
def bench(
    op: str,
    size: int | None,
    iters: int | None,
    lat: bool,
    no_crc: bool,
    post_list: int | None,
    poll: bool,
    rounds: int,
    as_json: bool,
    network: Network,
) -> None:
    """Measure RDMA WRITE, READ or SEND, memory to memory between two processes.

    In the same run a plain TCP socket moves the same octets: the ratio says what the RNIC costs.
    With --family new_tcp both go over steertag's TCP/IP here, and over the host's in the other
    process, which reaches the device through its host= address.
    """
    from steertag.perf.bench import BenchOptions, run

    if size is None:
        size = _DEFAULT_LATENCY_SIZE if lat else _DEFAULT_SIZE
    options = BenchOptions(
        op,
        size,
        count=iters,
        latency=lat,
        crc=not no_crc,
        post_list=post_list,
        poll=poll,
        rounds=rounds,
        family=network.family,
        address=network.address,
    )
    keep_interrupts()
    try:
        result = run(options)
    except OSError as exc:
        raise click.ClickException(
            f"the benchmark's processes lost each other: {exc.strerror or exc}; run it again"
        ) from exc
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        raise SystemExit(130) from None
    click.echo(json.dumps(result) if as_json else _table(result))


def _table(result: dict[str, Any]) -> str:
    crc = "with CRC32C" if result["crc"] else "without CRC"
    title = (
        f"RDMA {result['op'].capitalize()}, {result['size']:,} octets, {crc},"
        f" {result['count']:,} messages in {result['rounds']} rounds"
    )
    raw, rdma, ratio = result["raw"], result["rdma"], result["ratio"]
    head: tuple[str, ...]
    lines: list[tuple[str, ...]]
    if result["latency"]:
        head = ("round trip, us", "min", "p50", "p99")
        keys = ("min_us", "p50_us", "p99_us")
        lines = [
            (name, *(f"{figures[key]:.1f}" for key in keys))
            for name, figures in (("RDMA", rdma), ("raw socket", raw))
        ]
        lines.append(("ratio of p50", "", f"{ratio['p50_us']:.2f}", ""))
    else:
        title += f", lists of {result['post_list']}"
        head = ("", "GB/s", "messages/s")
        lines = [
            (name, f"{figures['gb_per_s']:.3f}", f"{figures['messages_per_s']:,.0f}")
            for name, figures in (("RDMA", rdma), ("raw socket", raw))
        ]
        lines.append(("ratio", f"{ratio['gb_per_s']:.2f}", f"{ratio['messages_per_s']:.2f}"))
    return "\n".join([title, *columns([head, *lines])])


def columns(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows as lines: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
