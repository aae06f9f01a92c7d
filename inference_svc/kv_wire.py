"""KV events as the contract writes them."""

from inference_svc.kv_events import BlocksRemoved, BlocksStored
from inference_svc.kv_ledger import Change, SnapshotPart
from sidecache.kv_blocks import pack_hashes
from sidecache.v1 import worker_pb2 as pb


def to_wire(
    epoch: str, item: SnapshotPart | Change, latest_sequence: int
) -> pb.SubscribeKvEventsResponse:
    """One message of a SubscribeKvEvents stream.

    Args:
        epoch: the worker's.
        item: what it says.
        latest_sequence: number of the worker's last change.
    """
    response = pb.SubscribeKvEventsResponse(
        epoch=epoch, sequence=item.sequence, latest_sequence=latest_sequence
    )
    if isinstance(item, SnapshotPart):
        response.snapshot.block_hashes = pack_hashes(item.hashes)
        response.snapshot.more = item.more
        # An empty snapshot says something too; without this the oneof would stay unset.
        response.snapshot.SetInParent()
        return response
    match item.event:
        case BlocksStored(hashes, parent):
            response.stored.block_hashes = pack_hashes(hashes)
            response.stored.parent_hash = b"" if parent is None else pack_hashes((parent,))
        case BlocksRemoved(hashes):
            response.removed.block_hashes = pack_hashes(hashes)
        case _:
            response.cleared.SetInParent()
    return response
