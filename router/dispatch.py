"""From workers and a prompt to a lease: what the policy is told, and what is remembered."""

from collections.abc import Callable, Sequence

from router.lease import Lease
from router.model import ServedModel
from router.prompt import RoutedPrompt
from router.routing.policy import Candidate, PromptShape, RoutingPolicy
from router.routing.recent import RecentRoutes
from router.settings import RoutingSettings
from router.worker import Worker

# Bounds of a learned rate: what any tokenizer can make of text.
_MIN_BYTES_PER_TOKEN, _MAX_BYTES_PER_TOKEN = 0.5, 16.0
_LEARNING_RATE = 0.1


class Dispatcher:
    """Chooses a worker for each prompt by the configured policy.

    Args:
        policy: pure; everything it goes by is in its arguments.
        settings: of routing.
        clock: monotonic seconds.
    """

    def __init__(
        self, policy: RoutingPolicy, settings: RoutingSettings, clock: Callable[[], float]
    ) -> None:
        self._policy = policy
        self._settings = settings
        self._clock = clock
        self._recent = RecentRoutes(settings.max_notes)
        # One figure a model; models are few, as they come from workers.
        self._bytes_per_token: dict[str, float] = {}
        self._leases_given = 0

    def reconfigure(self, settings: RoutingSettings, policy: RoutingPolicy) -> None:
        """Choose by these settings from now on; what was learned stays."""
        self._settings = settings
        self._policy = policy

    def lease(self, workers: Sequence[Worker], prompt: RoutedPrompt | None) -> Lease:
        """Choose among workers of one model, of which there is at least one.

        A worker without a free slot is taken only where none has one, whatever the policy.
        With one worker there is nothing to choose, and the prompt is not looked at.
        Without a prompt the worker with the fewest streams is taken.
        """
        self._leases_given += 1
        if len(workers) == 1 or prompt is None:
            worker = min(workers, key=lambda w: (w.leases, w.last_lease))
            lease = Lease(worker)
        else:
            lease = self._choose([w for w in workers if not w.is_full] or workers, prompt)
        lease.worker.last_lease = self._leases_given
        return lease

    def learn(self, model: ServedModel, prompt: RoutedPrompt, prompt_tokens: int) -> None:
        """Take in how many tokens a prompt really had."""
        if "footprint" not in vars(prompt) or prompt.known_tokens or not prompt_tokens:
            return
        rate = prompt.footprint.size / prompt_tokens
        rate = min(max(rate, _MIN_BYTES_PER_TOKEN), _MAX_BYTES_PER_TOKEN)
        before = self._bytes_per_token.get(model.name, rate)
        self._bytes_per_token[model.name] = before + _LEARNING_RATE * (rate - before)

    def _choose(self, workers: Sequence[Worker], prompt: RoutedPrompt) -> Lease:
        tau_s = self._settings.recent_tau_s
        tokens, held = self._held(workers, prompt)
        candidates = [
            Candidate(
                worker.incarnation,
                held_tokens=held[worker.incarnation],
                queued_prefill_tokens=worker.load.queued,
                active_tokens=worker.load.active,
                recent_prefill_tokens=worker.load.recent(tau_s),
                sequences=worker.leases + worker.load.foreign_sequences,
                order=worker.last_lease,
            )
            for worker in workers
        ]
        shape = PromptShape(tokens, prompt.footprint.affinity, self._leases_given)
        chosen = self._policy.choose(candidates, shape)
        worker = next(w for w in workers if w.incarnation == chosen.name)
        self._recent.note(prompt.footprint.names, chosen.name, self._clock())
        uncached = max(0, tokens - chosen.held_tokens)
        worker.load.prefills(uncached, tau_s)
        return Lease(worker, tokens, uncached)

    def _held(self, workers: Sequence[Worker], prompt: RoutedPrompt) -> tuple[int, dict[str, int]]:
        """The prompt's length, and how much of it each worker holds, in tokens.

        What the sidecar says counts; and what was sent to a worker just now, before its
        events can have come. Without a hint, what was sent to it in the last minutes
        is the best guess.
        """
        hint, footprint = prompt.hint, prompt.footprint
        per_token = self._bytes_per_token.get(
            workers[0].model.name if workers[0].model else "", self._settings.bytes_per_token
        )
        tokens = prompt.known_tokens or max(1, round(footprint.size / per_token))
        memory_s = self._settings.note_s if hint else self._settings.guess_s
        sent = self._recent.match(footprint.names, self._clock() - memory_s)
        held: dict[str, int] = {}
        for worker in workers:
            depth = sent.get(worker.incarnation, 0)
            share = footprint.ends[depth - 1] / footprint.size if depth else 0.0
            told = hint.held.get(worker.address, 0) * hint.block_size if hint else 0
            held[worker.incarnation] = min(tokens, max(round(share * tokens), told))
        return tokens, held
