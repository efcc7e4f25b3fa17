"""What a worker says about attempts, after their commit."""

from __future__ import annotations

import logging

from pgqueue.serialization import decode
from pgqueue.statements import Ended
from pgqueue.types import Claim, Failed, Ignored, Rejected, Released, Replaced, Retried, Revoked, Succeeded

logger = logging.getLogger("pgqueue.worker")


def tell(ended: Ended, acked: bool) -> None:
    """Log one line about an attempt: task, short id, attempt, outcome, duration."""
    claim, outcome = ended.claim, ended.outcome
    if acked and type(outcome) is Succeeded and not logger.isEnabledFor(logging.INFO):
        return  # nearly always: not even a name is made for it
    name = f"{claim.task if claim.options is None else _shown(claim)}[{claim.id[-12:]}]"
    if not acked:
        logger.warning("%s attempt %d: the lease is lost, its outcome counts for nothing", name, claim.attempt)
        return
    match outcome:
        case Succeeded():
            logger.info("%s attempt %d succeeded in %.3f s", name, claim.attempt, ended.runtime)
        case Failed(error, expected=True):
            logger.info("%s attempt %d failed: %s: %s", name, claim.attempt, error.type, error.message)
        case Failed(error):
            trace = f"\n{error.traceback.rstrip()}" if error.traceback else ""
            logger.error(
                "%s attempt %d failed in %.3f s: %s: %s%s",
                name, claim.attempt, ended.runtime, error.type, error.message, trace,
            )  # fmt: skip
        case Retried():
            why = f": {outcome.error.type}: {outcome.error.message}" if outcome.error else ""
            when = outcome.eta.isoformat() if outcome.eta else f"in {outcome.countdown:.3g} s"
            logger.info("%s attempt %d is to be retried %s%s", name, claim.attempt, when, why)
        case Replaced(task):
            logger.info("%s attempt %d is replaced by %s", name, claim.attempt, task)
        case Rejected(reason, requeue):
            verb = "handed back" if requeue else "rejected"
            logger.warning("%s attempt %d %s: %s", name, claim.attempt, verb, reason)
        case Revoked(reason):
            logger.info("%s is not run: %s", name, reason)
        case Ignored():
            logger.info("%s attempt %d ignored in %.3f s", name, claim.attempt, ended.runtime)
        case Released(crash=crash) if crash is not None:
            logger.error("%s attempt %d is to be repeated: %s: %s", name, claim.attempt, crash.type, crash.message)
        case Released():
            logger.debug("%s attempt %d released", name, claim.attempt)


def _shown(claim: Claim) -> str:
    """Return the name for logs: the one that the call gave, if it did."""
    options = decode(claim.options or "{}")
    shadow = options.get("shadow") if isinstance(options, dict) else None
    return shadow if isinstance(shadow, str) else claim.task
