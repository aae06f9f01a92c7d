"""What each tenant has left of its limits, and how an answer's metadata tells it."""

from collections.abc import Callable

from router.admission.buckets import Bucket
from router.tenant_limits import LimitsOf, TenantLimits
from sidecache.errors import QuotaExceeded

_MIN_RETRY_S = 0.01


class TenantQuota:
    """One tenant's use of its limits.

    Attributes:
        in_flight: its requests now.
    """

    def __init__(self, tenant: str, clock: Callable[[], float]) -> None:
        self._tenant = tenant
        self._clock = clock
        self._limits: TenantLimits | None = None
        self._tokens: Bucket | None = None
        self._requests: Bucket | None = None
        self.in_flight = 0

    @property
    def is_limited(self) -> bool:
        """Whether there is anything to count by the minute."""
        return self._tokens is not None or self._requests is not None

    def follow(self, limits: TenantLimits) -> None:
        """Go by these limits from now on."""
        if limits is not self._limits:
            self._limits = limits
            self._tokens = self._bucket(self._tokens, limits.tokens_per_minute)
            self._requests = self._bucket(self._requests, limits.requests_per_minute)

    def take_request(self) -> None:
        """Count one request.

        Raises:
            QuotaExceeded: too many came within the last minute.
        """
        if self._requests is None:
            return
        wait_s = self._requests.seconds_until(1)
        if wait_s:
            raise self._exceeded(f"{self._requests.per_minute} requests a minute", wait_s)
        self._requests.take(1)

    def take_tokens(self, tokens: int) -> None:
        """Take what a generation is expected to use.

        Raises:
            QuotaExceeded: there is not so much left now.
        """
        if self._tokens is None:
            return
        wait_s = self._tokens.seconds_until(tokens)
        if wait_s:
            raise self._exceeded(
                f"{self._tokens.per_minute} tokens a minute; this may take {tokens}", wait_s
            )
        self._tokens.take(tokens)

    def settle_tokens(self, expected: int, used: int) -> None:
        """Correct what was taken to what was used."""
        if self._tokens is not None:
            self._tokens.give_back(expected - used)

    @property
    def tokens_left(self) -> int | None:
        """None: no such limit."""
        return None if self._tokens is None else max(0, int(self._tokens.level))

    @property
    def requests_left(self) -> int | None:
        """None: no such limit."""
        return None if self._requests is None else max(0, int(self._requests.level))

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The x-ratelimit entries of an answer; times are seconds until nothing is missing."""
        entries: list[tuple[str, str]] = []
        for kind, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                entries += (
                    (f"x-ratelimit-limit-{kind}", str(bucket.per_minute)),
                    (f"x-ratelimit-remaining-{kind}", str(max(0, int(bucket.level)))),
                    (f"x-ratelimit-reset-{kind}", f"{bucket.seconds_until_full:.3f}s"),
                )
        return tuple(entries)

    def _bucket(self, bucket: Bucket | None, per_minute: int | None) -> Bucket | None:
        if per_minute is None:
            return None
        if bucket is None:
            return Bucket(per_minute, self._clock)
        bucket.change(per_minute)
        return bucket

    def _exceeded(self, limit: str, wait_s: float) -> QuotaExceeded:
        return QuotaExceeded(
            f"the limit is {limit}",
            subject=f"tenant:{self._tenant}",
            retry_after_s=max(_MIN_RETRY_S, wait_s),
        )


class Quotas:
    """Every tenant's; as many as there are tenants in the keys file, and only those that came.

    Args:
        limits_of: what a tenant may use now; it may change while the router runs.
        clock: monotonic seconds.
    """

    def __init__(self, limits_of: LimitsOf, clock: Callable[[], float]) -> None:
        self._limits_of = limits_of
        self._clock = clock
        self._quotas: dict[str, TenantQuota] = {}

    def of(self, tenant: str) -> TenantQuota:
        """A tenant's quota under its limits of now."""
        quota = self._quotas.get(tenant)
        if quota is None:
            quota = self._quotas[tenant] = TenantQuota(tenant, self._clock)
        quota.follow(self._limits_of(tenant))
        return quota

    def in_use(self) -> dict[str, TenantQuota]:
        """Of tenants that have something in flight or a limit by the minute."""
        return {t: q for t, q in self._quotas.items() if q.in_flight or q.is_limited}
