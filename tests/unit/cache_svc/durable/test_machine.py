"""The durable store against a plain model, through restarts, crashes and bent clocks."""

import asyncio
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cache_svc.entry import Entry
from cache_svc.store import Removal, Selection
from tests.fixtures.cache import entry_of, random_unit
from tests.fixtures.durable import Shop, same_answer

TENANTS = ["a", "b"]


class DurableMachine(RuleBasedStateMachine):
    """Puts, removals and bars, and processes that end in order or not at all.

    ``model`` holds what must be alive, with the seconds each has left to live.
    """

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.runs = 0
        self.next_id = 0
        self.wall_s = 1e6
        self.model: dict[int, Entry] = {}
        self.left_s: dict[int, float] = {}
        self.barred: set[tuple[str, bytes]] = set()
        self.shop = Shop(self.root / "0", wall_s=self.wall_s)

    def teardown(self) -> None:
        with self.shop:
            shutil.rmtree(self.root)

    @rule(
        tenant=st.sampled_from(TENANTS),
        text=st.sampled_from(["x", "y", "z"]),
        answer=st.binary(max_size=40),
        tags=st.lists(st.text(max_size=3), max_size=2).map(tuple),
        ttl_s=st.floats(1, 100),
    )
    def put(
        self, tenant: str, text: str, answer: bytes, tags: tuple[str, ...], ttl_s: float
    ) -> None:
        self._put(tenant, text, answer=answer, tags=tags, ttl_s=ttl_s)

    def _put(self, tenant: str, text: str, **fields: object) -> Entry:
        self.next_id += 1
        created_s = self.shop.clock()
        given = {"tenant": tenant, "created_s": created_s, **fields}
        entry = entry_of(self.next_id, text, **given)  # type: ignore[arg-type]  # a test's own
        self.shop.store.put(entry, random_unit(text))
        for older in [e for e in self.model.values() if e.key == entry.key]:
            self._forget(older.id)
        self.model[entry.id] = entry
        self.left_s[entry.id] = entry.expires_s - created_s
        return entry

    @rule(tenant=st.sampled_from(TENANTS))
    def invalidate(self, tenant: str) -> None:
        store = self.shop.store
        store.remove(store.select(tenant, Selection()), Removal.INVALIDATED)
        for entry in list(self.model.values()):
            if entry.key.tenant == tenant:
                self._forget(entry.id)

    @rule(tenant=st.sampled_from(TENANTS), barred=st.booleans())
    def bar(self, tenant: str, barred: bool) -> None:
        bar = (tenant, b"exact")
        self.shop.store.set_bar(bar, barred)
        (self.barred.add if barred else self.barred.discard)(bar)

    @rule(step_s=st.floats(0, 40))
    def wait(self, step_s: float) -> None:
        self.shop.clock.now_s += step_s
        self.wall_s += step_s
        self._live_on(step_s)

    @rule(off_s=st.floats(0, 20), bent_s=st.sampled_from([0.0, 0.0, -1e5]))
    def restart(self, off_s: float, bent_s: float) -> None:
        """End in order; a clock that was set back meanwhile hides the time off."""
        self.shop.store.set_bar(("time", b""), True)  # the commit that closing makes knows the time
        with self.shop:
            pass
        self.barred.add(("time", b""))
        self._reopen(self.shop.folder, off_s, bent_s)

    @rule(off_s=st.floats(0, 20), tail=st.integers(0, 3))
    def crash(self, off_s: float, tail: int) -> None:
        """Die right after an acknowledgement, with a tail that was never written."""
        store = self.shop.store
        asyncio.run(store.removals_settled())
        model, left_s = dict(self.model), dict(self.left_s)
        with store._writer.one_change():
            for _ in range(tail):
                self._put("a", "x")
            store.remove(store.select("b", Selection()), Removal.EVICTED)
            self.runs += 1
            crashed = self.shop.copy_to(self.root / f"crash {self.runs}")
        with self.shop:
            self.model, self.left_s = model, left_s
        self._reopen(crashed, off_s, 0.0)

    def _reopen(self, folder: Path, off_s: float, bent_s: float) -> None:
        self.runs += 1
        if bent_s == 0:
            self.wall_s += off_s
            self._live_on(off_s)
        system_s = self.wall_s + bent_s
        self.shop = Shop(folder, wall_s=system_s, started_s=17.0 * self.runs)
        assert set(self.shop.bars) == self.barred

    def _live_on(self, step_s: float) -> None:
        for entry_id in list(self.left_s):
            self.left_s[entry_id] -= step_s
            if self.left_s[entry_id] <= 1e-3:
                self._forget(entry_id)

    def _forget(self, entry_id: int) -> None:
        del self.model[entry_id]
        del self.left_s[entry_id]

    @invariant()
    def agrees_with_model(self) -> None:
        store = self.shop.store
        alive = {entry.id: entry for t in TENANTS for entry in store.select(t, Selection())}
        # Within a rounding of its last moment an answer may be on either side.
        gone = [e for i, e in alive.items() if i not in self.model]
        assert all(entry.expires_s - self.shop.clock() < 1e-2 for entry in gone)
        for entry_id, entry in self.model.items():
            found = store.find(entry.key.tenant, entry.key.exact)
            assert same_answer(found, entry)
            assert found is not None
            assert abs(found.expires_s - self.shop.clock() - self.left_s[entry_id]) < 1e-3


DurableMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestDurableMachine = DurableMachine.TestCase
