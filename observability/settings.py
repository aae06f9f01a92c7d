"""The settings every service composes into its own."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MIB = 1024 * 1024

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class SettingsPart(BaseModel):
    """Frozen, and a misspelt key is refused rather than ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TelemetrySettings(SettingsPart):
    """Where traces, metrics and logs go."""

    otlp_endpoint: str | None = None
    """OTLP/gRPC collector, e.g. http://localhost:4317. Unset: OTEL_EXPORTER_OTLP_ENDPOINT;
    neither: nothing is exported."""
    trace_sample_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of traces that start here which are recorded."""
    trust_caller_sampling: bool = True
    """Follow the caller's sampling flag. False: decide by trace id and ratio, so that
    strangers cannot choose what this service records."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severe log line written."""
    log_format: Literal["json", "console"] = "json"
    """One JSON object a line, or plain lines for a terminal."""
    metrics_interval_s: PositiveSeconds = 10.0
    """How often metrics are exported."""
    shutdown_timeout_s: Seconds = 2.0
    """Longest wait for the last export when the service stops."""


class TlsSettings(SettingsPart):
    """A server's certificate."""

    cert_file: Path
    """PEM certificate chain of this server."""
    key_file: Path
    """PEM private key of the certificate."""
    client_ca_file: Path | None = None
    """PEM authorities of client certificates. Set: a client without one is refused."""


class ClientTlsSettings(SettingsPart):
    """How a client checks a server, and proves itself to it."""

    ca_file: Path | None = None
    """PEM authorities that may have signed the server. Unset: the system's."""
    cert_file: Path | None = None
    """PEM certificate chain of this client, for mutual TLS."""
    key_file: Path | None = None
    """PEM private key of that certificate."""
    server_name: str | None = None
    """Name expected in the server's certificate, when it is not the host dialled."""


class ServerSettings(SettingsPart):
    """Where a service listens, and what it accepts there."""

    listen: str = "127.0.0.1:0"
    """host:port (port 0: any free one) or unix:/path/to.sock."""
    max_message_bytes: Annotated[int, Field(ge=1024, le=1024 * MIB)] = 4 * MIB
    """Largest message received or sent."""
    max_streams_per_connection: Annotated[int, Field(ge=1)] = 1024
    """Calls one connection may have open; more wait at the client."""
    keepalive_time_s: PositiveSeconds = 0.4
    """Silence after which a client with open calls is pinged."""
    keepalive_timeout_s: PositiveSeconds = 0.6
    """How long a ping may stay unanswered before the client counts as vanished and its
    calls are cancelled."""
    tls: TlsSettings | None = None
    """Serve TLS; mutual TLS with client_ca_file."""
    plaintext_beyond_loopback: bool = False
    """Allow a TCP address beyond loopback without TLS."""
    reflection: bool | None = None
    """Serve gRPC reflection. Unset: on loopback and Unix sockets only."""
    reuse_port: bool = False
    """Share the port with other processes (SO_REUSEPORT)."""
    ready_file: Path | None = None
    """Written with the address once the service answers, removed when it ends."""
    drain_grace_s: Seconds = 10.0
    """How long running calls may finish after SIGTERM."""
    drain_linger_s: Seconds = 0.2
    """New calls are still answered, with a refusal, for at least this much of the grace."""


class ChannelSettings(SettingsPart):
    """How a client connects and notices a dead peer."""

    tls: ClientTlsSettings | None = None
    """Dial with TLS. Unset: plaintext."""
    max_message_bytes: Annotated[int, Field(ge=1024, le=1024 * MIB)] = 4 * MIB
    """Largest message received or sent."""
    keepalive_time_s: PositiveSeconds = 1.0
    """Silence after which the peer is pinged while calls are open."""
    keepalive_timeout_s: PositiveSeconds = 1.0
    """How long a ping may stay unanswered before the connection counts as dead."""
    connect_timeout_s: PositiveSeconds = 2.0
    """Longest time one attempt to connect may take."""
    max_reconnect_backoff_s: PositiveSeconds = 1.0
    """Longest pause between attempts to connect."""
