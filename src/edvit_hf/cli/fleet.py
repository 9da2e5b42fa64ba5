# SPDX-License-Identifier: Apache-2.0
"""`edvit device join` and `edvit fleet`: machines become a Ray fleet, and a placement is started on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edvit_hf.cli.app import FormatOption, app, command
from edvit_hf.cli.examples import PANELS
from edvit_hf.cli.output import console, print_json, say

if TYPE_CHECKING:
    from edvit_hf.manifest.placement import PlacementFile

device = typer.Typer(name="device", help="This machine as a device of a Ray fleet.", no_args_is_help=True)
fleet = typer.Typer(
    name="fleet", help="A Ray fleet: start it, look at it, end it. On the coordinator's machine.", no_args_is_help=True
)
app.add_typer(device, name="device", rich_help_panel=PANELS["device"])
app.add_typer(fleet, name="fleet", rich_help_panel=PANELS["fleet"])

_TokenFile = Annotated[
    Path | None, typer.Option(help="File with the fleet's token. Or set EDVIT_FLEET_TOKEN. Who has it runs any code.")
]
_Insecure = Annotated[
    bool, typer.Option("--insecure", help="Without a token. Only where nobody else reaches the network.")
]
_Placement = Annotated[Path, typer.Option(help="placement.json: which device runs what.")]
_Head = Annotated[
    str, typer.Option("--head", metavar="HOST:PORT", help="Address of the head. Default: the one on this machine.")
]
_Share = Annotated[Path | None, typer.Option(help="Folder that `edvit pull` fetched for this device.")]
_FirstPort = Annotated[int, typer.Option(help="First of the ports to listen on, up to 60 more; 0: any that are free.")]
_Address = Annotated[str | None, typer.Option(help="Of this machine, as the others reach it. Default: found.")]


@command(device)
def join(
    head: Annotated[str, typer.Argument(metavar="HEAD", help="Address of the head, HOST or HOST:PORT.")],
    name: Annotated[str, typer.Option(help="Of this device in the placement.")],
    placement: Annotated[
        Path | None, typer.Option(help="placement.json; needed where the plan gives devices budgets.")
    ] = None,
    share: _Share = None,
    token_file: _TokenFile = None,
    insecure: _Insecure = False,
    address: _Address = None,
    first_port: _FirstPort = 6400,
    no_spare: Annotated[
        bool, typer.Option("--no-spare", help="Keep no idle process: 60 MiB less, a lost one is back a second later.")
    ] = False,
    only_print: Annotated[bool, typer.Option("--print", help="Print the line of Ray; do nothing.")] = False,
    systemd: Annotated[bool, typer.Option("--systemd", help="Print a unit that joins at boot; do nothing.")] = False,
) -> None:
    """Make this machine the device NAME of the fleet at HEAD, until Ctrl-C; when the head was away, join again.

    The actors of the placement then start here by themselves. The share's files are loaded from here: weights never
    travel.
    """
    from edvit_hf.fleet.joining import NodeConfig, printed_line, systemd_unit
    from edvit_hf.fleet.joining import join as join_fleet

    config = NodeConfig(
        name=name,
        head=head,
        placement=None if placement is None else _placement(placement),
        share=share,
        address=address,
        first_port=first_port or None,
        spare_process=not no_spare,
    )
    if only_print or systemd:
        files = {"token_file": token_file, "placement_file": placement}
        text = systemd_unit(config, **files, insecure=insecure) if systemd else printed_line(config, insecure=insecure)
        for line in text.splitlines():
            say(line)
        return
    join_fleet(config, _token(token_file), insecure=insecure)


@command(fleet)
def up(
    placement: _Placement,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Address of this machine, as the devices reach it: the head's.")
    ] = "127.0.0.1:6379",
    source: Annotated[
        str | None, typer.Option(metavar="REPO", help="From where a device pulls what its share does not hold.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of REPO.")] = None,
    share: _Share = None,
    token_file: _TokenFile = None,
    insecure: _Insecure = False,
    wait: Annotated[float, typer.Option(help="Seconds for devices to join and load.")] = 60.0,
    spares: Annotated[
        bool,
        typer.Option("--spares", help="A second process beside each sub-model, ready when one ends; twice the memory."),
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Fail if a device is not ready by then.")] = False,
    first_port: _FirstPort = 6500,
    temp_dir: Annotated[Path | None, typer.Option(help="Of Ray's sockets and logs. Default: /tmp/ray.")] = None,
    output: FormatOption = "human",
) -> None:
    """Start the head here and what the placement says on every device that joins; then tell how each is.

    Devices may join before or after: each starts what is its own when it comes.
    """
    from edvit_hf.fleet.cluster import bring_up, start_head, status_report
    from edvit_hf.fleet.joining import NodeConfig

    plan, token = _placement(placement), _token(token_file)
    config = NodeConfig(
        name=plan.coordinator,
        head=listen,
        is_head=True,
        placement=plan,
        share=share,
        first_port=first_port or None,
        spare_process=plan.coordinator is not None,
        temp_dir=temp_dir,
    )
    address = start_head(config, token, insecure=insecure)
    if output == "human":
        given = "--insecure" if insecure else f"--token-file {'FILE' if token_file is None else token_file.name}"
        say(f"head: {address}; each device joins with")
        for name in plan.devices:
            say(f"  edvit device join {address} --name {name} --share FOLDER --placement {placement.name} {given}")
    with _connected(address, token, insecure):
        bring_up(plan, source=source, revision=revision, wait_seconds=wait, strict=strict, spares=spares)
        _show(status_report(plan, address), output)


@command(fleet)
def status(
    placement: _Placement,
    head: _Head = "auto",
    token_file: _TokenFile = None,
    insecure: _Insecure = False,
    output: FormatOption = "human",
) -> None:
    """Tell of each device whether it has joined, what it runs, and how fast it answered."""
    from edvit_hf.fleet.cluster import status_report

    plan = _placement(placement)
    with _connected(head, _token(token_file), insecure) as address:
        _show(status_report(plan, address), output)


@command(fleet)
def down(
    placement: _Placement, head: _Head = "auto", token_file: _TokenFile = None, insecure: _Insecure = False
) -> None:
    """End what `edvit fleet up` started: the sub-models on every device, and the head if it was started here.

    Devices leave with their own `edvit device join`.
    """
    from edvit_hf.fleet.cluster import stop_head, take_down

    plan = _placement(placement)
    with _connected(head, _token(token_file), insecure) as address:
        count = take_down(plan)
    ended = stop_head(address)
    say(f"ended: {count} sub-models{' and the head' if ended else '; the head was not started here and stays'}")


def examine_fleet(placement: Path | None, head: str, token_file: Path | None, insecure: bool, output: str) -> None:
    """`edvit doctor --fleet`. Exits with 3 when something is broken."""
    from edvit_hf.fleet.doctor import examine_fleet as examine
    from edvit_hf.terminal import new_table

    if placement is None:
        raise typer.BadParameter("--fleet needs --placement placement.json: it says which devices there should be")
    plan = _placement(placement)
    with _connected(head, _token(token_file), insecure) as address:
        report = examine(plan, address, insecure=insecure)
    if output == "json":
        print_json(report)
    else:
        table = new_table(("", "device", "", "finding"), title=f"fleet {plan.fleet} at {address}")
        for each in report["findings"]:
            table.add_row(each["level"], each["device"], each["subject"], each["text"])
        console.print(table)
    if not report["healthy"]:
        raise typer.Exit(3)


def _token(file: Path | None) -> str | None:
    from edvit_hf.tokens import FLEET_TOKEN, read_tokens

    return next(iter(read_tokens(file, FLEET_TOKEN)), None)


def _placement(file: Path) -> "PlacementFile":
    from edvit_hf.manifest.placement import load_placement

    return load_placement(file)


@contextmanager
def _connected(head: str, token: str | None, insecure: bool) -> Iterator[str]:
    from edvit_hf.runtime.engines.ray_connection import connect, disconnect

    address = connect(head, token, insecure=insecure)
    try:
        yield address
    finally:
        disconnect()


def _show(report: dict[str, Any], output: str) -> None:
    if output == "json":
        print_json(report)
        return
    from edvit_hf.terminal import new_table

    table = new_table(("device", "address", ">reach ms", "sub-models", ">compute ms"), title=f"fleet {report['fleet']}")
    for each in report["devices"]:
        told = ", ".join(f"{index} {what}" for index, what in each["sub_models"].items()) or "spare"
        times = ", ".join(f"{row['sub_model']} {row['compute_ms']}" for row in each["observed"])
        address = each["address"] or "has not joined"
        table.add_row(each["device"], address, _figure(each["reach_ms"]), told, times)
    console.print(table)
    for sentence in report["mismatches"]:
        say(f"not as planned: {sentence}")


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
