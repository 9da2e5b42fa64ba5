# SPDX-License-Identifier: Apache-2.0
"""`edvit serve`: its options become the server's limits and configuration."""

import logging
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edvit_hf.cli.app import (
    EnsembleArgument,
    HeldPrecisionOption,
    NumThreadsOption,
    ProfileOption,
    RevisionOption,
    ScheduleOption,
    SubModelOption,
    command,
)
from edvit_hf.cli.engines import LOCAL, EngineOptions, local_options, with_engines
from edvit_hf.cli.output import end_at_once, say
from edvit_hf.serving import Limits, ServeConfig

if TYPE_CHECKING:
    from edvit_hf.runtime import EDViTRuntime
    from edvit_hf.serving import Service

_LIMITS, _DEFAULTS = Limits(), ServeConfig()


_Host = Annotated[str, typer.Option(help="Address to listen on. Others than loopback need a token or TLS.")]
_Port = Annotated[int, typer.Option(help="0: any that is free.")]
_DeadlineMs = Annotated[
    float | None,
    typer.Option(
        help="Answer without sub-models that take longer, decoding not counted. Default: 10 times what an answer takes "
        "now."
    ),
]
_MaxQueued = Annotated[
    int, typer.Option(help="Requests of a burst that may wait. Under lasting overload nobody waits.")
]
_MaxBytes = Annotated[int, typer.Option(help="Of a body.")]
_MaxPixels = Annotated[int, typer.Option(help="Of an image.")]
_MaxSeconds = Annotated[float, typer.Option(help="Of a sound.")]
_MaxCharacters = Annotated[int, typer.Option(help="Of a text.")]
_DecodeSeconds = Annotated[float, typer.Option(help="To read an image, a sound or a text.")]
_DecodeInProcess = Annotated[
    bool,
    typer.Option(
        "--decode-in-process",
        help="Read inputs in this process instead of in processes of their own, which may be ended. Only where nobody "
        "strange can ask.",
    ),
]
_Rate = Annotated[float, typer.Option(help="Requests a second from one client; 0: any number.")]
_SendSeconds = Annotated[float, typer.Option(help="Time a client has to send.")]
_MaxConnections = Annotated[int, typer.Option(help="Open at a time.")]
_TokenFile = Annotated[
    Path | None, typer.Option(help="Clients must show a token of this file, one a line. Or set EDVIT_SERVE_TOKEN.")
]
_TlsCert = Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")]
_TlsKey = Annotated[Path | None, typer.Option(help="Its private key, PEM.")]
_TlsClientCa = Annotated[Path | None, typer.Option(help="Clients must show a certificate of this CA.")]
_AllowedHost = Annotated[
    list[str] | None, typer.Option(help="A further name by which clients may call this server; may be repeated.")
]
_TrustedProxy = Annotated[
    list[str] | None,
    typer.Option(help="Address or network of proxies whose X-Forwarded-For is believed; may be repeated."),
]
_GraceSeconds = Annotated[float, typer.Option(help="Time for requests in flight after SIGTERM.")]
_Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No line for each request, errors alone.")]


@command()
@with_engines
def serve(
    ensemble: EnsembleArgument,
    revision: RevisionOption = None,
    host: _Host = _DEFAULTS.host,
    port: _Port = _DEFAULTS.port,
    precision: HeldPrecisionOption = None,
    profile: ProfileOption = None,
    sub_model: SubModelOption = None,
    num_threads: NumThreadsOption = None,
    schedule: ScheduleOption = "auto",
    deadline_ms: _DeadlineMs = None,
    max_queued: _MaxQueued = _DEFAULTS.max_queued,
    max_bytes: _MaxBytes = _LIMITS.max_bytes,
    max_pixels: _MaxPixels = _LIMITS.max_pixels,
    max_seconds: _MaxSeconds = _LIMITS.max_seconds,
    max_characters: _MaxCharacters = _LIMITS.max_characters,
    decode_seconds: _DecodeSeconds = _LIMITS.decode_seconds,
    decode_in_process: _DecodeInProcess = False,
    rate: _Rate = _LIMITS.rate,
    send_seconds: _SendSeconds = _LIMITS.send_seconds,
    max_connections: _MaxConnections = _LIMITS.max_connections,
    token_file: _TokenFile = None,
    tls_cert: _TlsCert = None,
    tls_key: _TlsKey = None,
    tls_client_ca: _TlsClientCa = None,
    allowed_host: _AllowedHost = None,
    trusted_proxy: _TrustedProxy = None,
    grace_seconds: _GraceSeconds = _DEFAULTS.grace_seconds,
    quiet: _Quiet = False,
    engines: EngineOptions = LOCAL,
) -> None:
    """Answer over HTTP: POST /predict takes a file or JSON. Also /ready, /metrics, /info and a page at /docs.

    Needs no torch. With --workers the devices run the sub-models. SIGTERM, SIGHUP or Ctrl-C finishes what is in flight,
    a second one stops at once.
    """
    from edvit_hf.hardware.machine import give_memory_back
    from edvit_hf.serving import serve as serve_forever
    from edvit_hf.tokens import read_tokens

    give_memory_back()
    _log_requests(quiet)
    limits = Limits(
        max_bytes=max_bytes,
        max_pixels=max_pixels,
        max_seconds=max_seconds,
        max_characters=max_characters,
        decode_seconds=decode_seconds,
        rate=rate,
        send_seconds=send_seconds,
        max_connections=max_connections,
        max_held_bytes=max(_LIMITS.max_held_bytes, 4 * max_bytes),
    )
    plain: dict[str, Any] = {"tls_cert": tls_cert, "tls_key": tls_key, "tls_client_ca": tls_client_ca}
    plain |= {"host": host, "port": port, "max_queued": max_queued, "grace_seconds": grace_seconds}
    config = ServeConfig(
        **plain,
        tokens=read_tokens(token_file),
        allowed_hosts=tuple(allowed_host or ()),
        trusted_proxies=tuple(trusted_proxy or ()),
        deadline_ms=deadline_ms,
        decode_in_process=decode_in_process,
        limits=limits,
    )
    chosen: dict[str, Any] = {"revision": revision, "precision": precision, "sub_models": sub_model}
    chosen |= {"num_threads": num_threads, "profile": profile, "schedule": schedule}
    options = {**local_options(engines, chosen), "engine": engines.make()}
    if not serve_forever(partial(_load, ensemble, max_queued, options), config, on_listening=_announce):
        end_at_once(0)  # an ordinary exit would wait for threads for which nobody waits any more


def _load(ensemble: str, max_queued: int, options: dict[str, Any]) -> "EDViTRuntime":
    from edvit_hf.runtime import CoordinatorConfig, EDViTRuntime

    return EDViTRuntime.from_pretrained(ensemble, **options, config=CoordinatorConfig(max_queued=max_queued))


def _log_requests(quiet: bool) -> None:
    logging.getLogger("edvit_hf.serving").setLevel(logging.INFO)
    logging.getLogger("edvit_hf.serving.access").setLevel(logging.WARNING if quiet else logging.INFO)


def _announce(url: str, service: "Service") -> None:
    from edvit_hf.serving.page import curl_line

    entry, task = service.runtime.manifest.ensemble, service.runtime.task
    needs_token = bool(service.config.tokens)
    for line in (
        f"serving {entry.id} ({task}, deadline {service.deadline_ms:.0f} ms) on {url}",
        f"ask:     {curl_line(task, url, needs_token=needs_token)}",
        f"page:    {url}/docs",
    ):
        say(line)
    sys.stdout.flush()
