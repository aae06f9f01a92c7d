import subprocess
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from observability.channel import open_channel
from observability.settings import ChannelSettings, ClientTlsSettings, ServerSettings, TlsSettings
from sidecache.errors import SetupError
from sidecache.v1 import inference_pb2 as pb
from sidecache.v1 import inference_pb2_grpc as rpc
from tests.unit.observability.conftest import Pair, Service, serving


@dataclass(frozen=True)
class Certificates:
    """One authority and a certificate for each end, made for this test run."""

    directory: Path

    def path(self, name: str) -> Path:
        return self.directory / name

    @classmethod
    def make(cls, directory: Path) -> "Certificates":
        made = cls(directory)
        made._openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 "
            "-subj /CN=authority -keyout ca.key -out ca.pem"
        )
        for end in ("server", "client"):
            made._openssl(
                "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes "
                f"-subj /CN={end} -keyout {end}.key -out {end}.csr"
            )
            made.path("san").write_text("subjectAltName=DNS:cache.test,IP:127.0.0.1\n")
            made._openssl(
                f"x509 -req -in {end}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 "
                f"-extfile san -out {end}.pem"
            )
        return made

    def _openssl(self, command: str) -> None:
        subprocess.run(
            ["openssl", *command.split()],  # noqa: S607 - the machine's openssl
            cwd=self.directory,
            check=True,
            capture_output=True,
        )


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.make(tmp_path_factory.mktemp("certificates"))


def server_settings(certificates: Certificates, *, mutual: bool = False) -> ServerSettings:
    return ServerSettings(
        tls=TlsSettings(
            cert_file=certificates.path("server.pem"),
            key_file=certificates.path("server.key"),
            client_ca_file=certificates.path("ca.pem") if mutual else None,
        )
    )


async def call(pair: Pair, tls: ClientTlsSettings | None) -> None:
    settings = ChannelSettings(tls=tls)
    async with open_channel(pair.address, pair.client.telemetry, settings) as channel:
        stub = rpc.InferenceServiceStub(channel)
        await stub.ListModels(pb.ListModelsRequest(), timeout=5)


async def test_tls_serves_a_client_that_knows_the_authority(certificates: Certificates) -> None:
    """A call over TLS goes through; plaintext and an unknown authority do not."""
    async with serving(Service(), settings=server_settings(certificates)) as pair:
        await call(pair, ClientTlsSettings(ca_file=certificates.path("ca.pem")))
        for stranger in (None, ClientTlsSettings()):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await call(pair, stranger)
            assert failed.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_servers_name_is_checked(certificates: Certificates) -> None:
    """server_name must be in the certificate."""
    ca_file = certificates.path("ca.pem")
    async with serving(Service(), settings=server_settings(certificates)) as pair:
        await call(pair, ClientTlsSettings(ca_file=ca_file, server_name="cache.test"))
        with pytest.raises(grpc.aio.AioRpcError):
            await call(pair, ClientTlsSettings(ca_file=ca_file, server_name="other.test"))


async def test_mutual_tls_wants_a_certificate(certificates: Certificates) -> None:
    """With client_ca_file a client proves itself or is not heard."""
    ca_file = certificates.path("ca.pem")
    known = ClientTlsSettings(
        ca_file=ca_file,
        cert_file=certificates.path("client.pem"),
        key_file=certificates.path("client.key"),
    )
    async with serving(Service(), settings=server_settings(certificates, mutual=True)) as pair:
        await call(pair, known)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call(pair, ClientTlsSettings(ca_file=ca_file))
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_tls_may_listen_beyond_loopback(certificates: Certificates) -> None:
    """With a certificate no further word is needed to be reachable."""
    settings = server_settings(certificates).model_copy(update={"listen": "0.0.0.0:0"})
    async with serving(Service(), settings=settings) as pair:
        await call(pair, ClientTlsSettings(ca_file=certificates.path("ca.pem")))


async def test_an_unreadable_certificate_is_named(tmp_path: Path) -> None:
    """A missing PEM file stops the server and the channel with its path."""
    missing = tmp_path / "none.pem"
    tls = TlsSettings(cert_file=missing, key_file=missing)
    with pytest.raises(SetupError, match=str(missing)):
        async with serving(Service(), settings=ServerSettings(tls=tls)):
            pass
    async with serving(Service()) as pair:
        with pytest.raises(SetupError, match=str(missing)):
            await call(pair, ClientTlsSettings(ca_file=missing))


async def test_a_file_that_is_no_certificate_is_refused(tmp_path: Path) -> None:
    """Garbage in a PEM file is a SetupError, not a server that refuses everybody."""
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("not a certificate")
    tls = TlsSettings(cert_file=garbage, key_file=garbage)
    with pytest.raises(SetupError, match="PEM certificate and the key that belongs to it"):
        async with serving(Service(), settings=ServerSettings(tls=tls)):
            pass
