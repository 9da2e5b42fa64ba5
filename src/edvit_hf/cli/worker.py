# SPDX-License-Identifier: Apache-2.0
"""`edvit worker`: one line on each device, which then answers for the sub-models of its share."""

import logging
import signal
import threading
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import typer

from edvit_hf.cli.app import NumThreadsOption, ProfileOption, SubModelOption, command
from edvit_hf.cli.output import say
from edvit_hf.fleet.exposure import DEFAULT_LISTEN, ListenConfig

_Shares = Annotated[
    list[Path],
    typer.Argument(
        metavar="SHARE...", help="Folder that `edvit pull` fetched for this device; a second one for another version."
    ),
]
_Listen = Annotated[
    str, typer.Option(metavar="HOST:PORT", help="Address to listen on. Others than loopback need a token. Port 0: any.")
]
_TokenFile = Annotated[
    Path | None, typer.Option(help="Whoever asks must show a token of this file. Or set EDVIT_FLEET_TOKEN.")
]
_TlsCert = Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")]
_TlsKey = Annotated[Path | None, typer.Option(help="Its private key, PEM.")]
_TlsClientCa = Annotated[Path | None, typer.Option(help="Whoever asks must show a certificate of this CA.")]
_Insecure = Annotated[
    bool, typer.Option("--insecure", help="Listen to other machines without a token. Only in a network of your own.")
]
_Precision = Annotated[
    Literal["fp32", "fp16", "int8"] | None, typer.Option(help="Which file. Default: the one that the share holds.")
]
_Schedule = Annotated[
    Literal["auto", "in_turn", "in_turn_spinning", "per_core", "workers"],
    typer.Option(help="How several sub-models share the cores; `auto` tries for a second."),
]
_GraceSeconds = Annotated[float, typer.Option(help="Time for requests in flight after SIGTERM.")]


@command()
def worker(
    share: _Shares,
    listen: _Listen = DEFAULT_LISTEN,
    token_file: _TokenFile = None,
    tls_cert: _TlsCert = None,
    tls_key: _TlsKey = None,
    tls_client_ca: _TlsClientCa = None,
    insecure: _Insecure = False,
    sub_model: SubModelOption = None,
    precision: _Precision = None,
    profile: ProfileOption = None,
    num_threads: NumThreadsOption = None,
    schedule: _Schedule = "in_turn",
    grace_seconds: _GraceSeconds = 2.0,
) -> None:
    """Answer for the sub-models in SHARE over the Open Inference Protocol (gRPC), for one of `--workers`.

    Needs no torch. SIGHUP opens the shares again and keeps the version before beside the new one. SIGTERM or Ctrl-C
    finishes what is in flight.
    """
    from edvit_hf.hardware.machine import give_memory_back
    from edvit_hf.runtime.device import DeviceHost
    from edvit_hf.tokens import FLEET_TOKEN, read_tokens

    give_memory_back()
    config = ListenConfig(
        listen=listen,
        tokens=read_tokens(token_file, FLEET_TOKEN),
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls_client_ca=tls_client_ca,
        insecure=insecure,
    )
    config.check()
    from edvit_hf.fleet.worker import Worker

    options: dict[str, Any] = {"sub_models": sub_model, "precision": precision, "profile": profile}
    options |= {"num_threads": num_threads, "schedule": schedule}
    logging.getLogger("edvit_hf.fleet").setLevel(logging.INFO)
    serving = Worker(partial(DeviceHost.load, **options), share, config)
    port = serving.start()
    for line in _announcement(serving.describe(), config, port):
        say(line)
    try:
        _until_ended(serving.reload)
    finally:
        serving.stop(grace_seconds)


def _announcement(held: list[str], config: ListenConfig, port: int) -> list[str]:
    host = config.listen.rpartition(":")[0]
    asked = ["a token"] * bool(config.tokens) + ["a client certificate"] * (config.tls_client_ca is not None)
    lines = [*held, f"listening on {host}:{port}; {' and '.join(asked) or 'nothing'} is asked for"]
    if config.tls_cert is None and host not in ("127.0.0.1", "[::1]", "localhost"):
        lines.append("nothing is encrypted: use a network that you trust, or --tls-cert and --tls-key")
    return lines


def _until_ended(reload: Any) -> None:
    """Wait for SIGTERM or Ctrl-C; SIGHUP calls `reload`."""
    ended, hung_up, woken = threading.Event(), threading.Event(), threading.Event()

    def take(number: int, _: FrameType | None) -> None:
        (hung_up if number == getattr(signal, "SIGHUP", None) else ended).set()
        woken.set()

    for name in ("SIGTERM", "SIGINT", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None:
            signal.signal(number, take)
    while not ended.is_set():
        woken.wait()
        woken.clear()
        if hung_up.is_set():
            hung_up.clear()
            reload()
