"""Where the server listens, who may use it, and how much of everything it takes."""

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from trl_ext.errors import ConfigError

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class ServerOptions:
    """Of `RolloutServer`.

    Args:
        host, port: where to listen. Port 0 takes a free one.
        token: what requests carry as `Authorization: Bearer ...`. None is for loopback only.
        public_url: what agents are told to reach the server by, where a reverse proxy stands in front of it.
        allowed_origins: pages of other origins that may use the server from a browser; its own may.
        max_waiting: requests that wait for the policy, before others are refused (429).
        max_workers: workers, and agents that came by HTTP, before others are told to come later.
        max_message: bytes of a request's body or a message of a worker.
        rate, burst: requests or messages a second that a client, or a socket, may send, and how many at once.
        read_timeout: seconds for the headers of a request, and for its body.
        request_timeout: seconds that a request for a completion waits for the policy.

    Raises:
        ConfigError: a value is out of range, or there is no token and others than this machine can connect.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    public_url: str | None = None
    allowed_origins: tuple[str, ...] = ()
    max_waiting: int = 4096
    max_workers: int = 1024
    max_message: int = 1 << 20
    rate: float = 500.0
    burst: int = 2000
    read_timeout: float = 20.0
    request_timeout: float = 900.0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port = {self.port}: must be from 0 to 65535")
        for name in ("max_waiting", "max_workers", "max_message", "rate", "burst", "read_timeout", "request_timeout"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be greater than 0")
        if self.token is not None:
            check_token(self.token)
        if self.token is None and not self.loopback:
            raise ConfigError(f"host = {self.host!r}: a server that others can reach needs a token (TRL_EXT_TOKEN)")
        for url in filter(None, (self.public_url, *self.allowed_origins)):
            if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
                raise ConfigError(f"{url!r}: must be an address that begins with http:// or https://")

    @property
    def loopback(self) -> bool:
        """Whether this machine alone can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def check_token(token: str) -> None:
    """
    Raises:
        ConfigError: it is easy to guess, or cannot be sent as a header.
    """
    if len(token) < 8 or not token.isascii() or not token.isprintable():
        raise ConfigError("token: must have at least 8 printable ASCII characters")
