"""TLS as a client sees it: whom to trust."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl


@dataclass(frozen=True)
class Tls:
    """Which certificates to trust: those in ``ca_file`` (PEM), else the system's; all of them if ``insecure``."""

    ca_file: Path | None = None
    insecure: bool = False

    def context(self, *protocols: str) -> ssl.SSLContext:
        """A client's context that offers ``protocols`` (ALPN); OSError if ``ca_file`` can't be used."""
        import ssl

        context = ssl.create_default_context(cafile=self.ca_file)
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if protocols:
            context.set_alpn_protocols(protocols)
        return context
