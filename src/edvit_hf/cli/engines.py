# SPDX-License-Identifier: Apache-2.0
"""Options of every command that asks an ensemble: which engine carries the requests, and to whom."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edvit_hf.errors import EDViTError

if TYPE_CHECKING:
    from edvit_hf.runtime import Engine

EngineName = Literal["local", "oip", "ray"]


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """The values of these options."""

    engine: EngineName | None = None
    workers: str | None = None
    placement: Path | None = None
    head: str | None = None
    insecure: bool | None = None
    token_file: Path | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None

    @property
    def name(self) -> EngineName:
        """The engine that is meant.

        Raises:
            EDViTError: Options contradict each other.
        """
        remote = {name: value for name, value in vars(self).items() if name != "engine" and value is not None}
        name = self.engine or ("oip" if self.workers is not None else "local")
        if name == "local" and remote:
            raise EDViTError(
                f"Expected no options of a fleet with sub-models in this process, got {', '.join(sorted(remote))}. Who "
                "is to be asked is unclear. Name the devices: --workers pi0=HOST:PORT,..., or leave the options out."
            )
        if name == "ray" and (self.placement is None or self.workers is not None):
            raise EDViTError(
                "Expected --placement, and no --workers, with --engine ray. Which device runs what is in the placement "
                "that `edvit fleet up` was given. Name it: --placement placement.json."
            )
        if name == "oip" and self.workers is None:
            raise EDViTError(
                "Expected --workers with --engine oip, got none. Whom to ask is unknown. Name the devices: --workers "
                "pi0=HOST:PORT,pi1=HOST:PORT."
            )
        return name

    def make(self) -> "Engine | Literal['local']":
        """The engine, not bound to any ensemble yet.

        Raises:
            EDViTError: See `name`; an address, a token or a file is wrong.
        """
        if self.name == "ray":
            return self._ray()
        return "local" if self.name == "local" else self._oip()

    def _ray(self) -> "Engine":
        from edvit_hf.runtime.engines.ray import RayEngine
        from edvit_hf.tokens import FLEET_TOKEN, read_tokens

        assert self.placement is not None
        tokens = read_tokens(self.token_file, FLEET_TOKEN)
        token, insecure = tokens[0] if tokens else None, bool(self.insecure)
        return RayEngine(self.head or "auto", placement=self.placement, token=token, insecure=insecure)

    def _oip(self) -> "Engine":
        from edvit_hf.runtime.engines.oip import OIPEngine
        from edvit_hf.runtime.engines.oip_links import ClientTls
        from edvit_hf.runtime.engines.workers import parse_workers
        from edvit_hf.tokens import FLEET_TOKEN, read_tokens

        tokens = read_tokens(self.token_file, FLEET_TOKEN)
        uses_tls = any(file is not None for file in (self.tls_ca, self.tls_cert, self.tls_key))
        return OIPEngine(
            parse_workers(self.workers or ""),
            placement=self.placement,
            token=tokens[0] if tokens else None,
            tls=ClientTls(ca=self.tls_ca, cert=self.tls_cert, key=self.tls_key) if uses_tls else None,
        )


LOCAL = EngineOptions()

_OPTIONS: dict[str, Any] = {
    "engine": Annotated[
        EngineName | None,
        typer.Option(
            help="What carries requests to sub-models: `ray` asks what `edvit fleet up` started. Default: "
            "`oip` where --workers is given, else `local`."
        ),
    ],
    "workers": Annotated[
        str | None,
        typer.Option(metavar="NAME=HOST:PORT,...", help="Devices that run `edvit worker`, or another such server."),
    ],
    "placement": Annotated[
        Path | None,
        typer.Option(help="Which of them runs which sub-model, and who can stand in. Default: they are asked."),
    ],
    "head": Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Head of the Ray fleet. Default: the one on this machine.")
    ],
    "insecure": Annotated[
        bool | None,
        typer.Option("--insecure", help="Ask a Ray fleet that has no token. Only in a network of your own."),
    ],
    "fleet_token_file": Annotated[
        Path | None, typer.Option(help="File with the token that the devices ask for. Or set EDVIT_FLEET_TOKEN.")
    ],
    "fleet_tls_ca": Annotated[
        Path | None, typer.Option(help="CA of the devices' certificates, PEM: connect with TLS.")
    ],
    "fleet_tls_cert": Annotated[Path | None, typer.Option(help="Certificate to show to the devices, PEM.")],
    "fleet_tls_key": Annotated[Path | None, typer.Option(help="Its private key, PEM.")],
}
"""Options of a command -> their types, as typer reads them."""


def with_engines(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command with a parameter `engines` these options in its place, before its last one."""

    @functools.wraps(function)
    def run(**given: Any) -> None:
        chosen = {name.removeprefix("fleet_"): given.pop(name) for name in _OPTIONS}
        function(**given, engines=EngineOptions(**chosen))

    kind = inspect.Parameter.KEYWORD_ONLY
    added = [inspect.Parameter(name, kind, default=None, annotation=type_) for name, type_ in _OPTIONS.items()]
    own = inspect.signature(function, eval_str=True).parameters
    kept = [each.replace(kind=kind) for name, each in own.items() if name != "engines"]
    run.__signature__ = inspect.Signature([*kept[:-1], *added, *kept[-1:]])  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in [*kept, *added]}
    return run


def local_options(options: EngineOptions, given: dict[str, Any]) -> dict[str, Any]:
    """What `from_pretrained` takes besides the engine: choices of files only where they are opened in this process.

    Raises:
        EDViTError: With workers, a choice was given that theirs alone can be.
    """
    if options.name == "local":
        return given
    chosen = [name for name in ("sub_models", "num_threads", "profile") if given.get(name) is not None]
    if chosen:
        raise EDViTError(
            f"Expected no choice of files or threads where devices run the sub-models, got {', '.join(chosen)}. Each "
            "device has its own. Give these to `edvit worker`; leave sub-models out of an answer with --absent."
        )
    return {name: value for name, value in given.items() if name in ("revision", "deadline_ms", "config")}
