# SPDX-License-Identifier: Apache-2.0
"""Certificates for tests, made by openssl: an authority, a server's, a client's, and a server's that has expired."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

HAS_OPENSSL = shutil.which("openssl") is not None


@dataclass(frozen=True)
class Certificates:
    """Where they lie: `NAME.pem` and `NAME.key` for `ca`, `server`, `client` and `expired`."""

    folder: Path

    def __call__(self, name: str) -> tuple[Path, Path]:
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"


def make_certificates(folder: Path) -> Certificates:
    """Make them, for 127.0.0.1 and localhost."""

    def openssl(*arguments):
        subprocess.run(["openssl", *map(str, arguments)], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", 2, "-subj", "/CN=ca")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
    for name in ("server", "client", "expired"):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        valid = ("-not_before", "20200101000000Z", "-not_after", "20200102000000Z")
        ends = ("-days", 2) if name != "expired" else valid
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
        try:
            openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem", *ends)
        except subprocess.CalledProcessError:  # an openssl before 3.4 knows no dates here
            openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem", "-days", -1)
    return Certificates(folder)
