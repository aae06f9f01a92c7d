"""What an operator is told of lanes, tenants and the scale signal."""

from router.admission.gate import Admission
from router.admission.scaler import Scaler
from sidecache.v1 import admin_pb2


def scale_response(scaler: Scaler, admission: Admission) -> admin_pb2.GetScaleSignalResponse:
    """Every model's signal with its lane's figures, and every tenant's use."""
    response = admin_pb2.GetScaleSignalResponse()
    for name, signal, demand in scaler.signals():
        lanes = [lane for model, lane in admission.lanes.items() if model.name == name]
        told = response.signals.add(
            model=name,
            ready_workers=demand.workers,
            desired_workers=signal.value,
            reason=signal.reason,
            running=demand.running,
            slots=demand.slots,
            waiting=sum(lane.waiting_slots for lane in lanes),
            waiting_tokens=sum(lane.waiting_tokens for lane in lanes),
            running_tokens=sum(lane.held_tokens for lane in lanes),
            kv_usage=demand.kv_usage,
            refused=sum(lane.refused_slots for lane in lanes),
        )
        backlog_s = max((lane.backlog_s for lane in lanes), default=0.0)
        told.backlog.FromNanoseconds(int(backlog_s * 1e9))
    for tenant, quota in admission.quotas.in_use().items():
        response.tenants.add(
            tenant=tenant,
            in_flight=quota.in_flight,
            tokens_left=quota.tokens_left,
            requests_left=quota.requests_left,
        )
    return response
