"""Nobody is told of a block that no prompt can reach."""

from hypothesis import given, settings
from hypothesis import strategies as st

from inference_svc.kv_events import BlocksRemoved, BlocksStored, CacheCleared, KvEvent
from inference_svc.reachable_blocks import ReachableBlocks
from sidecache.kv_blocks import BlockHasher

# Prompts over three tokens, so that many share a beginning; a token is a block.
PROMPTS = st.lists(st.integers(0, 2), min_size=1, max_size=6)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["stored", "stored", "evicted", "cleared"]),
        PROMPTS,
        st.integers(0, 5),
        st.integers(0, 5),
    ),
    max_size=40,
)


class Told:
    """What the events add up to; whatever breaks the promise fails at once."""

    def __init__(self) -> None:
        self.parents: dict[int, int | None] = {}

    def __call__(self, event: KvEvent) -> None:
        if isinstance(event, BlocksStored):
            parent = event.parent
            for name in event.hashes:
                assert name not in self.parents, "told twice"
                assert parent is None or parent in self.parents, "told without its parent"
                self.parents[name] = parent
                parent = name
        elif isinstance(event, BlocksRemoved):
            for name in event.hashes:
                del self.parents[name]
                assert name not in self.parents.values(), "a child is left"
        else:
            self.parents.clear()


def chain(prompt: list[int]) -> list[int]:
    return BlockHasher(1).hashes(prompt)


@settings(max_examples=400)
@given(steps=STEPS)
def test_what_is_told_is_what_a_prompt_can_use(
    steps: list[tuple[str, list[int], int, int]],
) -> None:
    """Any part of any prompt comes and goes; told is what is held with all before it."""
    told, held = Told(), dict[int, list[int]]()
    blocks = ReachableBlocks(told)
    for kind, prompt, first, last in steps:
        names = chain(prompt)
        part = range(min(first, last, len(names) - 1), min(max(first, last) + 1, len(names)))
        if kind == "stored":
            held |= {names[at]: names[: at + 1] for at in part}
            parent = names[part.start - 1] if part.start else None
            blocks(BlocksStored(tuple(names[at] for at in part), parent))
        elif kind == "evicted":
            for at in part:
                held.pop(names[at], None)
            blocks(BlocksRemoved(tuple(names[at] for at in part)))
        else:
            held.clear()
            blocks(CacheCleared())
        assert told.parents.keys() == {n for n, prefix in held.items() if held.keys() >= {*prefix}}
        assert len(blocks) == len(told.parents)
    # Nothing is kept of what is gone.
    blocks(BlocksRemoved(tuple(held)))
    assert not blocks._parents
    assert not blocks._children


def test_a_root_that_comes_back_brings_what_was_kept() -> None:
    """The blocks behind an evicted one are told as gone, and told again with it."""
    told, names = list[KvEvent](), tuple(chain([1, 2, 0, 1]))
    blocks = ReachableBlocks(told.append)
    blocks(BlocksStored(names))
    blocks(BlocksRemoved(names[1:2]))
    blocks(BlocksStored(names[1:2], names[0]))
    assert told == [
        BlocksStored(names),
        BlocksRemoved((names[3], names[2], names[1])),
        BlocksStored((names[1],), names[0]),
        BlocksStored((names[2],), names[1]),
        BlocksStored((names[3],), names[2]),
    ]
