"""Takes new settings while streams run: all of them, or none with the reason."""

from collections.abc import Iterator

from pydantic import BaseModel

from router.admission.gate import Admission
from router.auditor import Auditor
from router.dispatch import Dispatcher
from router.door import Door
from router.flights import Flights
from router.mesh import Mesh
from router.pool import WorkerPool
from router.relay import Relay
from router.routing.configured import make_configured
from router.service import InferenceServicer
from router.settings import RouterSettings
from router.splits.shadow import Shadows
from router.splits.splits import Splits
from router.watched_keys import WatchedKeys
from sidecache.errors import SetupError

# Read once, at start: sockets, files, and what other routers have to agree on.
_FIXED = (
    "server",
    "telemetry",
    "cache",
    "keys_file",
    "keys_interval_s",
    "insecure",
    "channels",
    "lookup",
    "pool",
    "quiet",
    "hedge",
    "retries",
    "quarantine",
    "outliers",
    "scale",
    "routing.tenant_salt",
    "routing.salt_secret",
    "routing.max_notes",
    "flights.advertise",
    "flights.mesh_key_file",
    "flights.paraphrase_wait_s",
    "flights.renew_s",
    "flights.remote_wait_s",
)


class Reconfigurer:
    """Hands new settings to the parts that can take them.

    A stream under way goes on by the settings it began with.
    """

    def __init__(
        self,
        settings: RouterSettings,
        *,
        keys: WatchedKeys | None,
        pool: WorkerPool,
        dispatcher: Dispatcher,
        door: Door,
        admission: Admission,
        relay: Relay,
        flights: Flights,
        auditor: Auditor,
        splits: Splits,
        shadows: Shadows,
        inference: InferenceServicer,
        mesh: Mesh | None,
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._pool = pool
        self._dispatcher = dispatcher
        self._door = door
        self._admission = admission
        self._relay = relay
        self._flights = flights
        self._auditor = auditor
        self._splits = splits
        self._shadows = shadows
        self._inference = inference
        self._mesh = mesh

    def apply(self, new: RouterSettings) -> None:
        """Put new settings in force.

        Raises:
            SetupError: something changed that cannot, or a worker target that cannot be;
                nothing has changed.
        """
        changed = sorted(set(_changes(self._settings, new)))
        if changed:
            raise SetupError(f"only a restart can change {', '.join(changed)}")
        # The only step that can fail comes first.
        self._pool.reconfigure(new.workers, new.routing, new.default_model)
        self._dispatcher.reconfigure(new.routing, make_configured(new.routing))
        self._admission.reconfigure(new.admission)
        self._auditor.reconfigure(new.audit)
        self._relay.reconfigure(new.limits, new.routing)
        self._flights.reconfigure(new.flights, new.limits.reader_stall_s, new.limits.max_request_s)
        if self._mesh is not None:
            self._mesh.reconfigure(new.limits)
        self._door.reconfigure(new.limits)
        self._inference.reconfigure(new.limits)
        self._shadows.reconfigure(new.limits)
        self._splits.reconfigure(new.splits)
        if self._keys is not None:
            self._keys.refresh()
        self._settings = new


def _changes(old: RouterSettings, new: RouterSettings) -> Iterator[str]:
    """The names of fixed settings whose values differ."""
    for name in _FIXED:
        before, after = _at(old, name), _at(new, name)
        if before == after:
            continue
        if isinstance(before, BaseModel) and isinstance(after, BaseModel):
            for field in type(before).model_fields:
                if getattr(before, field) != getattr(after, field):
                    yield f"{name}.{field}"
        else:
            yield name


def _at(settings: RouterSettings, name: str) -> object:
    value: object = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value
