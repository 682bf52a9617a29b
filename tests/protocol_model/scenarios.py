"""The scenarios that are explored, and the variants of the protocol in which one rule is broken."""

from dataclasses import dataclass, replace
from functools import partial

from protocol_model import client_rules, fault_rules, storage_rules, sweep_rules, worker_rules
from protocol_model.explorer import STUCK, Model, Rule
from protocol_model.invariants import INVARIANTS, is_settled
from protocol_model.protocol import JobKind, Protocol, Scenario, Setting
from protocol_model.state import Database, History, Row, World

_PROTOCOL_RULES = (
    client_rules.client_submits,
    client_rules.upstream_sends,
    worker_rules.worker_takes_message,
    worker_rules.worker_records_job,
    worker_rules.worker_claims,
    worker_rules.attempt_renews,
    worker_rules.attempt_stops,
    worker_rules.attempt_computes,
    worker_rules.attempt_is_recorded,
    worker_rules.attempt_sends_object,
    worker_rules.attempt_succeeds,
    worker_rules.attempt_fails,
    worker_rules.worker_acknowledges,
    sweep_rules.sweep_recovers,
    sweep_rules.parent_recovers,
    sweep_rules.sweep_fails_unreadable,
    sweep_rules.sweep_sends,
    sweep_rules.sweep_cancels,
    sweep_rules.retry_becomes_due,
    sweep_rules.sweep_removes_objects,
    sweep_rules.sweep_forgets_attempt,
    storage_rules.storage_applies,
    fault_rules.lease_of_dead_expires,
    fault_rules.replica_catches_up,
)
_EVENT_RULES = (
    client_rules.message_is_sent_twice,
    client_rules.owner_cancels,
    client_rules.upstream_cancels,
    client_rules.owner_retries,
    client_rules.operator_prunes,
    worker_rules.attempt_is_retried,
    worker_rules.machine_fails,
    worker_rules.worker_puts_message_back,
    worker_rules.worker_stops,
    fault_rules.worker_dies,
    fault_rules.attempt_freezes,
    fault_rules.redis_fails_over,
    fault_rules.cancellation_is_lost,
    fault_rules.acknowledged_message_returns,
    fault_rules.message_vanishes,
    fault_rules.object_is_damaged,
    fault_rules.postgres_fails_over,
)
EVENTS = frozenset(function.__name__ for function in _EVENT_RULES)
"""The names of all events that a scenario may have."""

_A = JobKind("scan A")
_B = JobKind("scan B")
_FAULTS_OF_WORKERS = frozenset({"worker_dies", "attempt_freezes", "attempt_is_retried"})

SMALL = Scenario(
    "one job, its cancellation and lost workers",
    (_A,),
    frozenset({"owner_cancels", "worker_dies", "attempt_freezes"}),
    max_messages=1,
)
SCENARIOS = (
    SMALL,
    Scenario(
        "one job, and all that happens without a failover",
        (_A,),
        _FAULTS_OF_WORKERS
        | {
            "message_is_sent_twice",
            "worker_puts_message_back",
            "owner_cancels",
            "worker_stops",
            "machine_fails",
            "operator_prunes",
        },
        max_returns=1,
        is_large=True,
    ),
    Scenario(
        "one job, and Redis loses its last commits",
        (_A,),
        _FAULTS_OF_WORKERS
        | {"redis_fails_over", "acknowledged_message_returns", "message_vanishes", "operator_prunes"},
    ),
    Scenario(
        "a job of an upstream without the Python client",
        (replace(_A, by_client=False),),
        _FAULTS_OF_WORKERS | {"message_is_sent_twice", "redis_fails_over", "message_vanishes", "owner_cancels"},
    ),
    Scenario(
        "a job that a message cancels, perhaps before it has a row",
        (replace(_A, by_client=False),),
        frozenset(
            {"upstream_cancels", "cancellation_is_lost", "message_is_sent_twice", "worker_dies", "attempt_freezes"}
        ),
    ),
    Scenario(
        "a message that breaks the contract",
        (replace(_A, by_client=False, readable=False),),
        _FAULTS_OF_WORKERS
        | {"message_is_sent_twice", "worker_puts_message_back", "owner_cancels", "worker_stops", "machine_fails"},
        max_returns=1,
    ),
    Scenario(
        "a failed or cancelled job is retried on request",
        (_A,),
        frozenset({"owner_retries", "owner_cancels", "attempt_freezes"}),
        max_attempts=1,
        max_messages=1,
    ),
    Scenario(
        "one job, and two workers that lose it",
        (_A,),
        frozenset({"worker_dies", "attempt_freezes"}),
        workers=2,
        max_attempts=3,
        max_messages=1,
    ),
    Scenario(
        "two jobs that ask for one prefix",
        (_A, _B),
        frozenset({"attempt_freezes", "owner_cancels"}),
        max_messages=1,
        is_large=True,
    ),
    Scenario(
        "reuse of a result that is damaged or pruned",
        (_A, replace(_A, reuse=True)),
        frozenset({"object_is_damaged", "operator_prunes", "attempt_freezes"}),
        max_attempts=1,
        max_messages=1,
    ),
    Scenario(
        "reuse is asked for, but the earlier job is of another scan",
        (_A, replace(_B, reuse=True)),
        frozenset({"operator_prunes"}),
        max_attempts=1,
        max_messages=1,
    ),
    Scenario(
        "Postgres loses its last commits",
        (_A,),
        frozenset({"worker_dies", "attempt_freezes", "postgres_fails_over", "operator_prunes"}),
        max_messages=1,
        is_large=True,
        not_promised=frozenset({"a job has one outcome", "every object is accounted for"}),
    ),
    Scenario(
        "a job is pruned, and Postgres loses its last commits",
        (_A,),
        frozenset({"worker_dies", "attempt_freezes", "postgres_fails_over", "operator_prunes"}),
        max_attempts=1,
        max_messages=1,
        not_promised=frozenset({"a job has one outcome", "every object is accounted for"}),
    ),
)


def make_model(scenario: Scenario, protocol: Protocol) -> Model[World]:
    """The state space of a scenario."""
    setting = Setting(protocol, scenario)
    jobs = len(scenario.jobs)
    database = Database((Row(),) * jobs)
    initial = World(
        database,
        database if scenario.has_replica else None,
        (0,) * jobs,
        (0,) * jobs,
        (False,) * jobs,
        ((),) * jobs,
        frozenset(),
        frozenset(),
        (History(),) * jobs,
    )
    rules = [Rule(function.__name__, partial(function, setting)) for function in _PROTOCOL_RULES]
    rules += [
        Rule(function.__name__, partial(function, setting), is_fault=True)
        for function in _EVENT_RULES
        if function.__name__ in scenario.events
    ]
    promised = INVARIANTS.keys() - scenario.not_promised
    invariants = {name: partial(holds, setting) for name, holds in INVARIANTS.items() if name in promised}
    return Model(initial, rules, invariants, partial(is_settled, setting))


@dataclass(frozen=True)
class Variant:
    """The protocol with one rule broken.

    Attributes:
        title: The broken rule, in words.
        protocol: The protocol without it.
        scenario: The name of a scenario that shows the fault, or its first words.
        violates: The property that is violated.
    """

    title: str
    protocol: Protocol
    scenario: str
    violates: str


_OWN = "results are the jobs own"
_ONE = "a job has one outcome"

VARIANTS = (
    Variant("a succeeded job is queued again on request", Protocol(retry_spares_successes=False), "a failed or", _ONE),
    Variant("an attempt records its outcome without its lease", Protocol(attempts_are_fenced=False), SMALL.name, _ONE),
    Variant(
        "a message is acknowledged before its job's row exists",
        Protocol(row_comes_before_acknowledgement=False),
        "a job of an upstream",
        STUCK,
    ),
    Variant(
        "a message overwrites the row of its job",
        Protocol(creation_keeps_a_row=False),
        "one job, and all",
        _ONE,
    ),
    Variant(
        "an orphaned job is queued again beyond the limit of attempts",
        Protocol(claim_heeds_limit=False),
        SMALL.name,
        "attempts stay within the limit",
    ),
    Variant(
        "a worker that lost a job takes it again although another is alive",
        Protocol(losses_are_avoided=False),
        "one job, and two workers",
        "a job goes round the workers",
    ),
    Variant(
        "a job avoids the workers that lost it although no other is alive",
        Protocol(avoidance_needs_another=False),
        "one job, and two workers",
        STUCK,
    ),
    Variant(
        "an orphaned job is queued again although its cancellation was requested",
        Protocol(requeue_heeds_cancellation=False),
        SMALL.name,
        "a cancelled job starts no attempt",
    ),
    Variant("a sweep changes rows that it has not locked", Protocol(sweep_locks_rows=False), SMALL.name, _ONE),
    Variant(
        "no sweep sends a message again that Redis has lost", Protocol(sweep_resends=False), "one job, and Redis", STUCK
    ),
    Variant(
        "the attempts of a job share their keys",
        Protocol(keys="the job's", removal="the job's"),
        "one job, and all",
        _OWN,
    ),
    Variant(
        "the jobs of a prefix share their keys", Protocol(keys="the prefix's", removal="the prefix's"), "two jobs", _OWN
    ),
    Variant("a row names objects that are not stored yet", Protocol(objects_come_before_row=False), SMALL.name, _OWN),
    Variant(
        "an attempt stores before it is recorded",
        Protocol(attempt_is_recorded_before_it_stores=False),
        SMALL.name,
        "every object is accounted for",
    ),
    Variant(
        "success leaves the attempt among those to be removed", Protocol(success_clears_record=False), SMALL.name, _OWN
    ),
    Variant("objects of a running attempt are removed", Protocol(removal_spares_holders=False), SMALL.name, _OWN),
    Variant("the folder of a lost attempt's job is removed", Protocol(removal="the job's"), SMALL.name, _OWN),
    Variant(
        "the prefix of a lost attempt is removed",
        Protocol(removal="the prefix's"),
        "two jobs",
        "no job loses objects to another",
    ),
    Variant(
        "objects are removed before a standby of Postgres knows that the lease was lost",
        Protocol(removal_outlasts_replica=False),
        "Postgres loses",
        _OWN,
    ),
    Variant(
        "results are removed before a standby of Postgres knows that their job is pruned",
        Protocol(pruned_results_outlast_replica=False),
        "a job is pruned",
        _OWN,
    ),
    Variant("a result of another scan is reused", Protocol(reuse_compares_work=False), "reuse is asked", _OWN),
    Variant("a damaged result is reused", Protocol(reuse_verifies=False), "reuse of", _OWN),
    Variant(
        "a message that cancels a job without a row is dropped",
        Protocol(cancellation_makes_a_row=False),
        "a job that a message",
        "a cancelled job starts no attempt",
    ),
    Variant(
        "a message that cancels a job is removed before the row is written",
        Protocol(row_comes_before_removal=False),
        "a job that a message",
        "a cancelled job starts no attempt",
    ),
    Variant(
        "a running job is pruned",
        Protocol(prune_keeps_unfinished=False),
        "one job, and Redis",
        "a pruned job had its outcome",
    ),
    Variant(
        "a job is pruned while it has a message", Protocol(prune_outlasts_messages=False), "one job, and all", _ONE
    ),
)


def find_scenario(name: str) -> Scenario:
    """The scenario whose name starts with these words."""
    return next(scenario for scenario in SCENARIOS if scenario.name.startswith(name))
