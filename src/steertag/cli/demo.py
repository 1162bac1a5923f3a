"""`stag demo`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import click

from steertag.cli.bench import Octets, columns
from steertag.cli.interrupt import keep_interrupts
from steertag.cli.output import reader_left
from steertag.cli.record import pcap_option

_NEXT: Final = """\
What to try next
  stag serve DIR                        serve a directory, on loopback
  stag get stag://127.0.0.1:7824/FILE   fetch from it; --path chooses the path
  stag bench write -s 1M                memory to memory against a raw socket
  stag --help                           everything else"""


@click.command()
@click.option("--size", type=Octets(), default="256M", show_default=True, help="Size of the file.")
@click.option(
    "--runs",
    type=click.IntRange(1, 50),
    default=5,
    show_default=True,
    help="Counted runs of each path; figures are medians.",
)
@click.option(
    "--dir",
    "directory",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    help="Where the files go for the time of the run (default: memory if there is room).",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@pcap_option
def demo(size: int, runs: int, directory: Path | None, as_json: bool) -> None:
    """Move a file between a server and a client process over four paths; show what each costs."""
    from steertag.perf.demo import DemoOptions, run
    from steertag.transfer.errors import TransferError

    def say(line: str) -> None:
        click.echo(line, err=as_json)

    keep_interrupts()
    try:
        result = run(DemoOptions(size, runs, directory), say)
    except TransferError as exc:
        raise click.ClickException(str(exc)) from exc
    except OSError as exc:
        if reader_left():
            raise
        raise click.ClickException(f"{exc.strerror or exc}; try --size 16M, or --dir") from exc
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        raise SystemExit(130) from None
    click.echo(json.dumps(result) if as_json else _report(result))
    if not all(figures["digest_ok"] for figures in result["paths"].values()):  # type: ignore[attr-defined]
        raise click.ClickException("a digest was wrong: the figures above are worth nothing")


def _report(result: dict[str, Any]) -> str:
    head = ("path", "GB/s", "CPU s/GB", "staged", "syscalls/MiB", "digest")
    rows = [
        (
            path,
            f"{figures['gb_per_s']:.2f}",
            f"{figures['cpu_s_per_gb']:.2f}",
            f"{figures['staged_bytes_per_byte']:.3f}",
            f"{figures['syscalls_per_mib']:.1f}",
            "ok" if figures["digest_ok"] else "WRONG",
        )
        for path, figures in result["paths"].items()
    ]
    fallback = result["fallback"]
    return "\n".join(
        [
            "",
            *columns([head, *rows]),
            "",
            f"Medians of {result['runs']} runs, both processes together; staged: octets copied",
            "through a user-space buffer for each octet of the file.",
            "",
            f"Fallback: {fallback['from']} was asked for, {fallback['to']} was used:"
            f" {fallback['reason']} (digest {'ok' if fallback['digest_ok'] else 'WRONG'})",
            "",
            _NEXT,
        ]
    )
