"""Every word that a Celery program can use, and what it means here: `celery-check` and a page of docs/ read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby

from pgqueue.conf import WORDS as SETTINGS
from pgqueue.conf import Word as Setting
from pgqueue.conf import renamed
from pgqueue.errors import InvalidOption


class Verdict(StrEnum):
    """What becomes of a word; the last is for words that Celery does not know."""

    SAME = "same"
    STRONGER = "stronger"
    CHANGED = "changed"
    LATER = "later"
    UNSUPPORTED = "unsupported"
    NEW = "new"


SAME, STRONGER, CHANGED = Verdict.SAME, Verdict.STRONGER, Verdict.CHANGED
LATER, UNSUPPORTED, NEW = Verdict.LATER, Verdict.UNSUPPORTED, Verdict.NEW


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a section: what becomes of it, and one sentence why, or what to write instead."""

    name: str
    verdict: Verdict
    note: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """Words that stand in the same place of a program.

    - `title`: its heading in the page; `shown`: how one of its words is shown, such as `task({}=)`.
    - `lines`: words with spaces between, their verdict, and the sentence that they share.
    """

    title: str
    shown: str
    lines: tuple[tuple[str, Verdict, str], ...]

    def show(self, name: str) -> str:
        """Return a word as it is shown; one that is a form of a call already as it is."""
        return name if "(" in name and self.shown.endswith("=)") else self.shown.format(name)

    def words(self) -> Iterator[Word]:
        """Give the words one by one, in the order of the table."""
        for names, verdict, note in self.lines:
            for name in names.split():
                yield Word(name, verdict, note)


#: Settings whose meaning is kept and whose default or values are others.
_OTHER_SETTINGS = {
    "broker_url", "result_backend", "task_acks_late", "task_acks_on_failure_or_timeout", "task_acks_on_failure",
    "task_acks_on_timeout", "task_reject_on_worker_lost", "task_default_queue", "task_default_priority", "task_queues",
    "worker_pool", "worker_prefetch_multiplier", "task_annotations",
}  # fmt: skip
_UNKNOWN = object()


def _settings() -> Iterator[tuple[str, Verdict, str]]:
    for word in SETTINGS.values():
        yield word.name, _verdict(word), _sentence(word)


def _verdict(word: Setting) -> Verdict:
    match word.verdict:
        case "used":
            return CHANGED if word.name in _OTHER_SETTINGS else SAME
        case "same":
            return STRONGER
        case "warned":
            return LATER if " yet" in word.why else CHANGED
    return CHANGED if word.default is not None else UNSUPPORTED


def _sentence(word: Setting) -> str:
    text = word.why[:1].upper() + word.why[1:]
    text = text if text.endswith(".") else f"{text}."
    match word.verdict:
        case "same":
            return f"Always {word.default!r}: {word.why.rstrip('.')}." if word.default is not None else text
        case "warned":
            return f"No effect, with a warning: {word.why.rstrip('.')}."
        case "refused" if word.default is not None:
            return f"{word.default!r} only: {word.why.rstrip('.')}."
    return text


#: Why a family of words is not here.
_BROKER = "There is no broker and no exchange: a queue is a name."
_OF_CANVAS = "A canvas says it, not a call: `chain`, `group`, `chord`."
_CONTROL = "Remote control comes in a later release; until then `pgqueue status` and `pgqueue sql`."
_EVENTS = "Events come in a later release; until then signals, and `pgqueue sql`."
_BEAT = "The scheduler comes in a later release; until then cron with `pgqueue call`."
_BY_STAMPS = "SQL finds jobs by their stamps, and `pgqueue.revoke` revokes them: see Workflows."
_JSON = "JSON only: what is stored is data, never code, and readable in SQL."
_WORKER = "The worker has no parts to replace: no bootsteps, consumers, loaders or pools of one's own."
_TRANSPORT = "Nothing is transported: rows are committed to PostgreSQL."
_RESULTS = "Results are rows of `pgqueue.result`: read them with SQL."
_LOGGING = "Configure logging in your module; `setup_logging` is sent before the worker does it."
_INNER = "An inner part of Celery."
_PICKLES = "serializer=pickle serializer=yaml serializer=msgpack serializer=auth"
_CELERYS_EXCEPTIONS = (
    "WorkerTerminate Terminated AlreadyRegistered TaskError QueueNotFound NotConfigured SecurityError CeleryWarning "
    "UnpickleableExceptionWrapper CDeprecationWarning CPendingDeprecationWarning CeleryCommandException "
    "DuplicateNodenameWarning FixupWarning reraise raise_with_context get_pickleable_exception"
)

# fmt: off
SECTIONS: dict[str, Section] = {
    "imports": Section("Modules and imports", "{}", (
        ("celery.Celery", CHANGED, "`PgQueue(name, dsn=...)`: one database instead of broker and result store."),
        ("celery.shared_task", SAME, "`from pgqueue import shared_task`."),
        ("celery.Task celery.app.task.Task", SAME, "`from pgqueue import Task`."),
        ("celery.current_task", CHANGED, "`app.current_task`, or `bind=True`."),
        ("celery.current_app celery.app.app_or_default", CHANGED, "Import your app; `self.app` in a bound task."),
        ("celery.result.AsyncResult", SAME, "`from pgqueue import AsyncResult`; better `app.AsyncResult(id)`."),
        ("celery.result.EagerResult", SAME, "`from pgqueue.eager_result import EagerResult`."),
        ("celery.result.ResultSet", SAME, "`from pgqueue.result_set import ResultSet`; better `app.ResultSet(...)`."),
        ("celery.result.GroupResult", SAME, "`from pgqueue import GroupResult`; better `app.GroupResult`."),
        ("celery.result.result_from_tuple", SAME, "`from pgqueue import result_from_tuple`."),
        ("celery.result.allow_join_result", SAME, "`from pgqueue.result import allow_join_result`."),
        ("celery.result.denied_join_result celery.result.assert_will_not_block", UNSUPPORTED, _INNER),
        ("celery.utils.log.get_task_logger celery.utils.log.get_logger", CHANGED, "`logging.getLogger(__name__)`."),
        ("celery.utils.log celery.app.log", UNSUPPORTED, _LOGGING),
        ("celery.utils.uuid celery.utils.gen_unique_id kombu.uuid kombu.utils.uuid.uuid", CHANGED,
         "`str(uuid.uuid4())`: an id is a UUID."),
        ("celery.contrib.django", CHANGED, "`connection=\"default\"` enqueues in the transaction that is open."),
        ("celery.contrib.pytest celery.contrib.testing pytest_celery", CHANGED,
             "Fixtures for pytest are there as soon as pgqueue is installed; see docs/testing.md."),
        ("celery.contrib.abortable", LATER, "Aborting a running job comes in a later release; `revoke` is durable."),
        ("celery.contrib.rdb celery.contrib.sphinx celery.contrib.migrate", UNSUPPORTED,
         "Use what Python has: `breakpoint()`, autodoc (a task keeps its function's docstring), SQL."),
        ("celery.worker.control celery.app.control", LATER, _CONTROL),
        ("celery.events", LATER, _EVENTS),
        ("celery.beat", LATER, _BEAT),
        ("celery.bootsteps celery.concurrency celery.worker celery.loaders celery.apps celery.fixups", UNSUPPORTED,
         _WORKER),
        ("celery.bin celery.platforms", UNSUPPORTED, "Run the command line: `pgqueue worker`."),
        ("celery.backends", UNSUPPORTED, _RESULTS),
        ("celery.security", UNSUPPORTED, "The roles and the TLS of PostgreSQL say who may enqueue and who may claim."),
        ("celery.task celery.execute celery.registry celery.decorators", UNSUPPORTED,
         "Celery has dropped these itself: `app.task`, `app.send_task`, `app.tasks`."),
        ("celery.utils celery.local celery.app celery._state celery.five celery.canvas celery.schedules celery.result "
         "celery.states celery.signals celery.exceptions", UNSUPPORTED, _INNER),
        ("celery.VERSION celery.__version__", CHANGED, "`importlib.metadata.version(\"pgqueue-tasks\")`."),
        ("kombu.Queue kombu.common.Broadcast", CHANGED,
         "A queue is a name and needs no declaration: `queue=\"mail\"`, `pgqueue worker -Q mail`."),
        ("kombu.Exchange kombu.binding", UNSUPPORTED, _BROKER),
        ("kombu.serialization", UNSUPPORTED, _JSON),
        ("kombu", UNSUPPORTED, _TRANSPORT),
        ("billiard amqp vine", UNSUPPORTED, _INNER),
        ("django_celery_beat", LATER, _BEAT),
        ("django_celery_results", CHANGED, "Leave it out: results are rows of `pgqueue.result` in your database."),
        ("celery_once celery_singleton", CHANGED, "`unique_key=` of a call: at most one unfinished job has it."),
        ("celery_batches", UNSUPPORTED, "Claim rows of a table of yours in one task."),
        ("flower", LATER, "A web page comes in a later release; until then `pgqueue status` and `pgqueue sql`."),
        ("sentry_sdk.integrations.celery opentelemetry.instrumentation.celery", LATER,
         "Integrations come in a later release; until then the signals of tasks."),
    )),
    "options": Section("Options of a task: `@app.task(...)`, or attributes of a task class", "task({}=)", (
        ("name", SAME, "Default module.function; rows carry it, so keep it while jobs wait."),
        ("bind base", SAME, "`base=` is a subclass of `pgqueue.Task`."),
        ("run", SAME, "A class with `run` is made a task by `app.register_task`."),
        ("queue", SAME, "A name; nothing is declared."),
        ("priority", CHANGED, "0 to 9, default 5; 9 runs first."),
        ("expires", STRONGER, "Decided by the database's clock when the job is claimed."),
        ("ignore_result store_errors_even_if_ignored", STRONGER, "Kept through retries."),
        ("acks_late", CHANGED,
         "True by default, at least once; False: at most once, and a lost worker leaves a FAILURE."),
        ("acks_late=True reject_on_worker_lost=True", SAME, "The default here."),
        ("reject_on_worker_lost", CHANGED, "True by default: repeated, `max_crashes` (3) times at most."),
        ("acks_on_failure_or_timeout acks_on_timeout", CHANGED,
         "False: an attempt over its `time_limit` counts as a crash and is repeated, `max_crashes` times at most."),
        ("acks_on_failure", CHANGED, "False: a failure is kept with its arguments, though results are ignored."),
        ("track_started", STRONGER, "Taken; what has started is always known."),
        ("time_limit soft_time_limit", STRONGER,
         "Neither interrupts a commit; the hard one works in every pool."),
        ("rate_limit", LATER, "Checked and taken; it is not kept yet."),
        ("max_retries default_retry_delay", SAME, "3, and 180 seconds; None has no limit."),
        ("autoretry_for dont_autoretry_for retry_kwargs", STRONGER, "`Reject`, `Ignore` and `Retry` pass through."),
        ("retry_backoff retry_backoff_max retry_jitter", SAME, ""),
        ("throws", SAME, "Expected exceptions: logged as INFO without a traceback."),
        ("typing", STRONGER, "Arguments are checked against the annotations too, where the call is made."),
        ("pydantic", CHANGED,
         "True by default: annotations are always validated; False checks number and names alone."),
        ("pydantic_strict", UNSUPPORTED, "Say it in the annotation: `Annotated[int, Strict()]`."),
        ("pydantic_context pydantic_dump_kwargs", UNSUPPORTED, "Validate and dump in the task."),
        ("trail", SAME, "False: the children of this task are not listed."),
        ("send_events", LATER, "Taken; events come in a later release."),
        ("serializer", CHANGED, "\"json\" only; dates, decimals, UUIDs, bytes and sets survive."),
        (_PICKLES, UNSUPPORTED, _JSON),
        ("compression resultrepr_maxsize delivery_mode lazy shared", CHANGED,
         "Leave it out: no effect, with a warning."),
        ("store_eager_result", UNSUPPORTED, "An eager run stores nothing."),
        ("backend", UNSUPPORTED, "Results are in the database of the app."),
        ("exchange routing_key", UNSUPPORTED, _BROKER),
        ("Strategy Request", UNSUPPORTED, _WORKER),
        ("abstract from_config", UNSUPPORTED, "Leave it out: a class is no task before it is registered."),
    )),
    "calls": Section("Options of a call: `apply_async(...)`, `signature.set(...)`", "apply_async({}=)", (
        ("args kwargs", SAME, "Checked before anything is sent."),
        ("task_id", CHANGED, "A UUID; an id that has succeeded is not run again."),
        ("countdown", STRONGER, "A row that nobody touches before its time, however long."),
        ("eta", CHANGED, "An aware datetime; a naive one is refused unless the setting `timezone` gives its zone."),
        ("expires", STRONGER, "Decided by the database's clock; a datetime as for `eta`."),
        ("queue", SAME, "A name; nothing is declared."),
        ("priority", CHANGED, "0 to 9; 9 runs first."),
        ("headers", SAME, "JSON values, at `self.request.headers`."),
        ("ignore_result time_limit soft_time_limit", STRONGER,
         "Checked where the call is made, and kept through retries."),
        ("link", STRONGER, "Enqueued in the commit that ends the job: not lost, not twice."),
        ("link_error", CHANGED, "A job with the id of the failed one as first argument, enqueued in the same commit."),
        ("link_error(request,exc,traceback)", CHANGED,
         "The handler becomes a job with one argument, the failed id; `app.AsyncResult(id)` knows the rest."),
        ("shadow", SAME, "A name for logs."),
        ("argsrepr kwargsrepr", CHANGED, "Taken, not used: the database has the arguments themselves."),
        ("retry retry_policy", CHANGED,
         "Taken, not used: a broken enqueue is sent once more, and never makes two jobs."),
        ("add_to_parent", SAME, ""),
        ("root_id parent_id", SAME, "Both or neither."),
        ("connection", CHANGED, "One of PostgreSQL: the job is enqueued in its transaction."),
        ("serializer", CHANGED, "\"json\" only."),
        (_PICKLES, UNSUPPORTED, _JSON),
        ("compression delivery_mode mandatory immediate", CHANGED, "Leave it out: no effect, with a warning."),
        ("producer publisher exchange exchange_type routing_key reply_to", UNSUPPORTED, _BROKER),
        ("chord chain group_id group_index", UNSUPPORTED, _OF_CANVAS),
        ("replaced_task_nesting", UNSUPPORTED, "`self.replace` counts it."),
        ("stamped_headers", UNSUPPORTED, "`add.s(2, 3).stamp(customer=7)`, or the option `stamps`."),
        ("immutable", SAME, "Of a signature."),
    )),
    "retry": Section("Options of `self.retry(...)`", "retry({}=)", (
        ("args kwargs exc", SAME, ""),
        ("throw", CHANGED, "With False the task goes on, and what it returns then is not kept: the retry is."),
        ("eta countdown", STRONGER, "The same row waits; there is no second message."),
        ("max_retries", STRONGER, "For this attempt, and leaks nowhere."),
        ("queue priority expires headers ignore_result time_limit soft_time_limit", SAME, "Replace those of the job."),
        ("link link_error shadow serializer compression connection producer exchange routing_key add_to_parent task_id "
         "retry retry_policy", UNSUPPORTED, "Leave it out: the job stays the same one, with all that was said of it."),
    )),
    "app": Section("The app", "app.{}", (
        ("task", SAME, "With and without options; typed like the function."),
        ("send_task", SAME, "By name, without the code of the task."),
        ("signature subtask AsyncResult ResultSet", SAME, ""),
        ("tasks", SAME, "A dictionary."),
        ("conf", CHANGED, "Celery's names; a word without effect warns, one that would change the program is refused."),
        ("config_from_object config_from_envvar", SAME, "With `namespace=`."),
        ("autodiscover_tasks", SAME, "Without a list: Django's installed apps."),
        ("register_task", SAME, ""),
        ("gen_task_name", SAME, ""),
        ("Task task_cls", SAME, ""),
        ("current_task current_worker_task set_current", SAME, ""),
        ("timezone", SAME, ""),
        ("close", SAME, "Closes the connections."),
        ("main", CHANGED, "`app.name`."),
        ("GroupResult", SAME, "`app.GroupResult.restore(id)`."),
        ("canvas chain group chord chunks map starmap", CHANGED, "`from pgqueue import chain, group, chord`."),
        ("add_periodic_task", LATER, _BEAT),
        ("control", LATER, _CONTROL),
        ("events", LATER, _EVENTS),
        ("worker_main start Worker WorkController Beat", UNSUPPORTED, "Run the command line: `pgqueue worker`."),
        ("on_configure on_after_configure on_after_finalize on_after_fork", UNSUPPORTED,
         "Nothing happens late: write it below the app; `worker_process_init` is sent after a fork."),
        ("finalize finalized set_default", UNSUPPORTED, "Leave it out: nothing is lazy or hidden."),
        ("amqp pool connection connection_for_write connection_for_read connection_or_acquire producer_or_acquire",
         UNSUPPORTED, _TRANSPORT),
        ("producer_pool broker_connection default_connection default_producer", UNSUPPORTED, _TRANSPORT),
        ("backend", UNSUPPORTED, _RESULTS),
        ("loader steps user_options log", UNSUPPORTED, _WORKER),
        ("setup_security", UNSUPPORTED, "The roles and the TLS of PostgreSQL do this."),
        ("add_defaults", UNSUPPORTED, "`app.conf.update`."),
        ("bugreport now uses_utc_timezone oid thread_oid", UNSUPPORTED, _INNER),
    )),
    "arguments": Section("Arguments of `Celery(...)`", "Celery({}=)", (
        ("main", CHANGED, "`PgQueue(name)`: a name is asked for."),
        ("broker backend", CHANGED, "`dsn=\"postgresql://...\"`, or PGQUEUE_DSN: one database for both."),
        ("include task_cls set_as_current", SAME, ""),
        ("config_source namespace", CHANGED, "`app.config_from_object`."),
        ("autofinalize changes strict_typing", UNSUPPORTED, "Leave it out: nothing is lazy or hidden."),
        ("loader amqp events log control tasks fixups result_backend", UNSUPPORTED, _WORKER),
    )),
    "task": Section("Methods and attributes of a task", "task.{}", (
        ("delay", SAME, "Typed like the function; `adelay` for coroutines."),
        ("apply_async", SAME, "An unknown option is an error that names the nearest."),
        ("apply", STRONGER, "Here and now, retries and links as well; nothing is stored."),
        ("s si signature subtask", SAME, ""),
        ("retry", STRONGER, "The same row waits again: no second message, no gap."),
        ("request", SAME, ""),
        ("update_state", STRONGER, "Its own states are refused, and an attempt that lost its lease writes nothing."),
        ("replace", STRONGER, "In one commit, under the same id; by a workflow as well."),
        ("add_to_chord", CHANGED, "A single call, enqueued at once; its value comes last. No `lazy=`."),
        ("map starmap chunks", SAME, "`map` and `starmap` have the queue and the priority of the task."),
        ("app AsyncResult add_trail", SAME, ""),
        ("delay_on_commit apply_async_on_commit", CHANGED,
         "`apply_async(..., connection=\"default\")`: enqueued in the transaction, and you get the id."),
        ("send_event", LATER, _EVENTS),
        ("backend", UNSUPPORTED, _RESULTS),
        ("request_stack push_request pop_request", UNSUPPORTED, "Test with `apply`."),
        ("signature_from_request subtask_from_request s_from_request add_around annotate", UNSUPPORTED, _INNER),
    )),
    "hooks": Section("Methods of a task class that are called", "Task.{}", (
        ("before_start", SAME, "What it raises is as if the body had raised it."),
        ("on_success on_failure on_retry after_return", STRONGER,
         "After the commit: they see what is stored; their errors are logged, kept with the job, and change nothing."),
        ("on_replace on_bound", SAME, ""),
        ("__call__", SAME, "Around the body, in a worker and in a direct call."),
        ("__init__", CHANGED, "Without arguments; `on_bound(app)` comes when it is registered."),
        ("shadow_name", UNSUPPORTED, "`shadow=` of the call."),
    )),
    "request": Section("`self.request`", "request.{}", (
        ("id task args kwargs retries hostname root_id parent_id headers", SAME, ""),
        ("eta expires", SAME, "ISO 8601."),
        ("delivery_info", SAME, "`redelivered` after a lost worker; `crashes` counts."),
        ("called_directly is_eager get", SAME, ""),
        ("timelimit time_limit soft_time_limit ignore_result shadow", SAME, ""),
        ("callbacks errbacks", CHANGED, "The continuations as data."),
        ("correlation_id", SAME, "The id of the job."),
        ("properties", CHANGED, "Id and priority; send what is yours as `headers`."),
        ("children as_execution_options replaced_task_nesting utc", SAME, ""),
        ("group group_index chord chain", UNSUPPORTED, "Always None: the workflow is `root_id`, its rows are in SQL."),
        ("origin lang loglevel logfile reply_to", UNSUPPORTED, "Always None."),
        ("stamps stamped_headers", SAME, "Kept by retries and replacements."),
        ("execution_options update clear", UNSUPPORTED, "A request is read, not written."),
        ("on_ack acknowledged message", UNSUPPORTED, "An attempt ends in one commit; nothing else acknowledges."),
    )),
    "result": Section("`AsyncResult`", "AsyncResult.{}", (
        ("id task_id app", SAME, ""),
        ("state status", CHANGED, "`UNKNOWN` for an id that nobody has; `PENDING` is a job that waits."),
        ("result info", SAME, "The value, the exception, or the meta of `update_state`."),
        ("get wait", CHANGED, "Notified, not polled. Raises UnknownJob at once for an unknown id, and a class of yours "
         "only where it is imported."),
        ("get(timeout=) get(propagate=) get(callback=) get(follow_parents=) get(disable_sync_subtasks=)", SAME, ""),
        ("get(interval=) get(on_interval=) get(on_message=)", SAME, "Of the looks where no notification comes."),
        ("get(no_ack=)", CHANGED, "Leave it out: no effect."),
        ("ready", STRONGER, "IGNORED and REJECTED are ready too: nobody waits for ever."),
        ("successful failed traceback date_done retries", SAME, ""),
        ("name args kwargs worker queue", STRONGER, "Always there, without `result_extended`."),
        ("children parent", STRONGER, "Queries, not parts of a stored result."),
        ("exists", STRONGER, "True as soon as the enqueueing is committed."),
        ("forget", CHANGED, "The jobs that it continues as well, as there; returns whether there was a result."),
        ("revoke", STRONGER, "Durable: a waiting job ends now, a running one is not started again."),
        ("revoke(terminate=) revoke(signal=)", LATER, "Ending a running job comes in a later release; it raises now."),
        ("revoke(wait=) revoke(timeout=)", SAME, "The revocation is committed when it returns."),
        ("collect iterdeps get_leaf graph as_tuple as_list", SAME, ""),
        ("build_graph", CHANGED, "A plain dictionary of children."),
        ("maybe_throw throw", SAME, ""),
        ("then", UNSUPPORTED, "`link=`, or `await result.aget()`."),
        ("maybe_reraise on_ready add_pending_result build backend", UNSUPPORTED, _INNER),
        ("revoke_by_stamped_headers", UNSUPPORTED, _BY_STAMPS),
        ("supports_native_join", SAME, ""),
    )),
    "results": Section("`ResultSet`, `GroupResult`", "ResultSet.{}", (
        ("results add remove discard update clear app", SAME, ""),
        ("ready successful failed waiting completed_count", STRONGER, "One query for all."),
        ("get join", STRONGER, "One wait for all; values in the order of the calls."),
        ("iter_native forget revoke maybe_throw supports_native_join", SAME, ""),
        ("join_native", SAME, ""),
        ("maybe_reraise on_ready backend", UNSUPPORTED, _INNER),
        ("then", UNSUPPORTED, "`link=`, or `await results.aget()`."),
        ("children parent as_tuple id", SAME, "Of a `GroupResult`; a member that ends with a group is one handle."),
        ("save restore delete", SAME, "Of a `GroupResult`: rows, in the database."),
    )),
    "signals": Section("Signals: `pgqueue.signals`", "signals.{}", (
        ("before_task_publish after_task_publish", CHANGED, "With Celery's names; `headers` and `body` are there, what "
         "speaks of a broker is empty."),
        ("task_received", CHANGED, "When a job is claimed; `request` is its context."),
        ("task_prerun", SAME, ""),
        ("task_success task_failure task_retry task_postrun", STRONGER,
         "After the commit: never of what did not happen."),
        ("task_revoked", CHANGED,
         "When a worker meets such a job; one that waits is revoked in the database, by nobody."),
        ("task_internal_error", CHANGED, "When a hook or a receiver fails; the outcome stays."),
        ("task_rejected task_unknown", SAME, ""),
        ("worker_init worker_ready worker_shutting_down worker_shutdown", SAME, ""),
        ("worker_before_create_process worker_process_init worker_process_shutdown", SAME, "Not with `-P solo`."),
        ("celeryd_init celeryd_after_setup", CHANGED, "`worker_init`."),
        ("setup_logging", SAME, ""),
        ("after_setup_logger after_setup_task_logger", UNSUPPORTED, _LOGGING),
        ("task_sent", CHANGED, "`after_task_publish`."),
        ("import_modules", UNSUPPORTED, "Write it below the app."),
        ("heartbeat_sent", UNSUPPORTED, "Beats are rows of `pgqueue.worker`."),
        ("beat_init beat_embedded_init", LATER, _BEAT),
        ("eventlet_pool_started eventlet_pool_preshutdown eventlet_pool_postshutdown eventlet_pool_apply", UNSUPPORTED,
         "`-P asyncio` runs coroutines."),
        ("user_preload_options", UNSUPPORTED, "The command line takes no options of yours."),
    )),
    "signal": Section("Methods of a signal", "signal.{}", (
        ("connect disconnect send receivers", SAME, "A receiver takes `**kwargs` and is held weakly."),
        ("send_robust", CHANGED, "`send`: the error of one receiver keeps no other from being called."),
        ("has_listeners", CHANGED, "`bool(signal.receivers)`."),
    )),
    "exceptions": Section("Exceptions: `pgqueue.errors`, most of them in `pgqueue` too", "exceptions.{}", (
        ("Retry Ignore TaskPredicate", SAME, ""),
        ("Reject", STRONGER, "REJECTED can be read; `requeue=True` pauses longer each time, and comes to an end."),
        ("MaxRetriesExceededError SoftTimeLimitExceeded TimeLimitExceeded WorkerLostError TaskRevokedError", SAME, ""),
        ("IncompleteStream", SAME, ""),
        ("TimeoutError", CHANGED, "`ResultTimeout`, a subclass of Python's own TimeoutError."),
        ("NotRegistered", CHANGED, "`UnknownTask`; in a worker: the job waits for one that knows its task."),
        ("ImproperlyConfigured", CHANGED, "`SettingsError`; `InvalidOption` for options."),
        ("CeleryError", CHANGED, "`PgQueueError`."),
        ("OperationalError BackendError BackendGetMetaError BackendStoreError", CHANGED, "`DatabaseUnavailable`."),
        ("ContentDisallowed DecodeError EncodeError SerializerNotInstalled", CHANGED,
         "`NotSerializable`, raised at the call, with the path of the value."),
        ("InvalidTaskError", CHANGED, "`InvalidArguments`, raised at the call; in a worker a FAILURE."),
        ("WorkerShutdown", CHANGED, "Raised in a task when the worker ends now; its job goes back."),
        ("ChordError", STRONGER, "Names who failed, has it as `__cause__`, and passes every level of nesting."),
        (_CELERYS_EXCEPTIONS, UNSUPPORTED, "Never raised here."),
    )),
    "states": Section("States: `pgqueue.State`, a text", "states.{}", (
        ("PENDING", CHANGED, "A job that waits; an id that nobody has is `UNKNOWN`."),
        ("STARTED", STRONGER, "Always known, without `track_started`."),
        ("SUCCESS FAILURE RETRY", SAME, ""),
        ("REVOKED", STRONGER, "Never written over a result."),
        ("REJECTED IGNORED", STRONGER, "Stored, and ready."),
        ("RECEIVED", UNSUPPORTED, "A job waits (PENDING) or runs (STARTED)."),
        ("READY_STATES", CHANGED, "`pgqueue.types.READY_STATES`: REJECTED and IGNORED are ready too."),
        ("UNREADY_STATES EXCEPTION_STATES PROPAGATE_STATES ALL_STATES precedence state", UNSUPPORTED,
         "Write down the set of `pgqueue.State` that you mean."),
    )),
    "canvas": Section("Canvas", "{}", (
        ("signature", SAME, "`task.s(...)`, or `signature(name, ...)`."),
        ("subtask", CHANGED, "`signature`."),
        ("Signature", SAME, "`from pgqueue import Signature`."),
        ("chain", STRONGER, "The next one is enqueued by the commit that ends the one before."),
        ("group", STRONGER, "Created in one transaction; order and ids are those of the definition."),
        ("chord", STRONGER, "Counted in the commits of its members: never lost, doubled or polled for."),
        ("chunks xmap xstarmap maybe_signature", SAME, "`from pgqueue import chunks`, and so on."),
        ("maybe_subtask", CHANGED, "`maybe_signature`."),
        ("StampingVisitor", SAME, "`from pgqueue import StampingVisitor`."),
        ("GroupStampingVisitor", CHANGED,
         "`GroupStampingVisitor()`: it gives groups no ids, so a canvas can still be enqueued more than once."),
    )),
    "signature": Section("A signature: `task.s(...)`", "signature.{}", (
        ("delay apply_async apply set clone", SAME, ""),
        ("link link_error on_error", SAME, ""),
        ("args kwargs options immutable", SAME, "Attributes, and keys of the mapping that it is."),
        ("task", CHANGED, "The task itself; its name is `name`, and the value of the key."),
        ("freeze replace set_immutable flatten_links id parent_id root_id subtask_type from_dict keys values items get",
         SAME, "`dict(call)` is data, of which `signature` makes the call again."),
        ("skew tasks body header", SAME, "Of a group, a chain or a chord."),
        ("| ~", SAME, ""),
        ("unlink_error", CHANGED, "`replace(options=...)`."),
        ("type", CHANGED, "`task`."),
        ("reprcall election register_type", UNSUPPORTED, _INNER),
        ("stamp stamp_links", SAME, ""),
    )),
    "schedules": Section("Schedules", "{}", (
        ("crontab schedule schedstate ParseException crontab_parser maybe_schedule BaseSchedule", LATER, _BEAT),
        ("solar", UNSUPPORTED, "Compute the time and give it as `eta`."),
    )),
    "control": Section("Remote control: `app.control`, `app.control.inspect()`", "control.{}", (
        ("revoke", CHANGED, "`app.AsyncResult(id).revoke()`: durable."),
        ("purge discard_all", CHANGED, "`pgqueue purge -Q queue`."),
        ("ping stats active_queues active reserved scheduled registered registered_tasks revoked query_task", LATER,
         "`pgqueue status` and `pgqueue sql` answer it today."),
        ("report conf clock inspect", LATER, "`pgqueue status` and `pgqueue sql` answer it today."),
        ("terminate rate_limit time_limit add_consumer cancel_consumer pool_grow pool_shrink pool_restart autoscale "
         "enable_events disable_events heartbeat shutdown broadcast mailbox", LATER, _CONTROL),
        ("revoke_by_stamped_headers terminate_by_stamped_headers", UNSUPPORTED, _BY_STAMPS),
        ("election hello memsample memdump objgraph", UNSUPPORTED, "Tools for Celery's own workers."),
    )),
    "command": Section("The command line", "celery {}", (
        ("worker call result status purge", CHANGED,
         "`pgqueue worker`; the others with options of their own, see `--help`."),
        ("-A/--app -Q/--queues -X/--exclude-queues -c/--concurrency -n/--hostname -l/--loglevel --pidfile --autoscale",
         SAME, "Of `worker`."),
        ("--time-limit --soft-time-limit --max-tasks-per-child --max-memory-per-child --prefetch-multiplier", SAME,
         "Of `worker`."),
        ("-P/--pool", CHANGED, "prefork, solo, threads, asyncio; no gevent, no eventlet."),
        ("--without-gossip --without-mingle --without-heartbeat", CHANGED, "Taken without effect."),
        ("-O", UNSUPPORTED, "Leave it out: a claimed job that does not begin within 0.15 s is handed back."),
        ("-B/--beat -s/--schedule --scheduler beat", LATER, _BEAT),
        ("-E/--task-events events", LATER, _EVENTS),
        ("-D/--detach -f/--logfile --uid --gid --umask --executable --statedb --workdir multi", UNSUPPORTED,
         "A worker stays in the foreground and logs to stderr: see [deployment.md](deployment.md)."),
        ("-b/--broker --result-backend", CHANGED, "`--dsn`."),
        ("--purge --discard", CHANGED, "`pgqueue purge` before."),
        ("--loader --config -I/--include --skip-checks --heartbeat-interval --disable-prefetch", UNSUPPORTED,
         "Say it in the app."),
        ("inspect control list report", LATER, _CONTROL),
        ("shell", CHANGED, "`python -i -m your_module`; `pgqueue psql` for the database."),
        ("amqp migrate graph logtool upgrade", UNSUPPORTED, _TRANSPORT),
    )),
    "settings": Section("Settings: `app.conf`", "conf.{}", tuple(_settings())),
    "new": Section("New here", "{}", (
        ("task(transactional=) task.transaction app.transaction app.atransaction", NEW,
         "The writes of a task and its acknowledgement in one commit; business writes and enqueues in another."),
        ("apply_async(connection=)", NEW,
         "Enqueue in the transaction of a connection: psycopg, asyncpg, SQLAlchemy, Django."),
        ("apply_async(unique_key=)", NEW, "At most one unfinished job has the key."),
        ("apply_async(stamps=) AsyncResult.stamps", NEW, "What `signature.stamp` says."),
        ("app.enqueue_many app.aenqueue_many", NEW, "Any number of calls in one transaction."),
        ("ResultSet.asave ResultSet.adelete ResultSet.arestore", NEW, "The same for coroutines."),
        ("signature.name signature.app", NEW, "Of the task."),
        ("signature.to_dict signature.plan", NEW, "A call as data; a canvas as the rows that it becomes."),
        ("task.adelay task.aapply_async task.aupdate_state app.asend_task app.aclose AsyncResult.aget ResultSet.aget "
         "signature.adelay signature.aapply_async", NEW, "The same for coroutines."),
        ("task.trace", NEW, "One attempt here and now, for tests."),
        ("app.workflow", NEW, "Calls with names, each after any number of others: see [workflows.md](workflows.md)."),
        ("app.load_tasks app.task_named app.configure app.name", NEW, "Of the app."),
        ("app.queues app.default_queue", NEW, "Queues of the app."),
        ("AsyncResult.created AsyncResult.ignored AsyncResult.errors AsyncResult.crashes AsyncResult.attempt "
         "AsyncResult.date_enqueued AsyncResult.headers AsyncResult.root", NEW,
         "What else a handle knows: earlier errors, lost workers, whether the call made the job."),
        ("ResultSet.iterate", NEW, "Results as they come."),
        ("request.attempt request.crashes request.queue request.priority request.worker", NEW,
         "Of the running attempt."),
        ("exceptions.InvalidOption exceptions.InvalidArguments exceptions.NotSerializable exceptions.PayloadTooLarge "
         "exceptions.SettingsError", NEW, "Raised where the mistake is made."),
        ("exceptions.PgQueueError exceptions.UnknownTask exceptions.UnknownJob exceptions.DatabaseUnavailable "
         "exceptions.SchemaMissing exceptions.ResultTimeout", NEW, "Of the app and the database."),
        ("exceptions.LeaseLost", NEW, "In a task: another worker has its job, nothing it writes is accepted."),
        ("exceptions.TaskFailed exceptions.TaskRejectedError", NEW,
         "How a job ended, where no other class can tell it."),
        ("exceptions.Replace exceptions.TransactionUnavailable", NEW,
         "Raised by pgqueue in a task, which lets them pass."),
        ("states.UNKNOWN", NEW, "Nobody has this id."),
    )),
}
# fmt: on

_BY_NAME = {key: {word.name: word for word in section.words()} for key, section in SECTIONS.items()}


def find(section: str, name: str) -> Word | None:
    """Return the word of a section by its name."""
    return _BY_NAME[section].get(name)


def setting(name: str, value: object = _UNKNOWN) -> Word | None:
    """Return what becomes of a setting by its present name, and of its value where that is known."""
    word, known = find("settings", name), SETTINGS.get(name)
    if word is None or known is None or value is _UNKNOWN or (value is None and not known.none):
        return word
    try:
        kept = value if known.check is None else known.check(name, value)
    except InvalidOption as error:
        return Word(name, UNSUPPORTED if known.verdict == "refused" else CHANGED, f"{error}.")
    if known.verdict == "refused":
        return Word(name, SAME if kept == known.default else UNSUPPORTED, word.note)
    return word


def setting_named(variable: str, prefix: str = "") -> str | None:
    """Return the present name of the setting that a variable in capitals stands for."""
    for start in filter(None, (prefix, "CELERY_")):
        name = variable.removeprefix(start).lower()
        if variable.startswith(start) and name in SETTINGS:
            return name
    return renamed(variable)


def markdown() -> str:
    """Return all words as the tables of the page docs/coming-from-celery.md."""
    return "\n".join(_markdown(section) for section in SECTIONS.values())


def _markdown(section: Section) -> str:
    lines = [f"### {section.title}", "", "| word | verdict | |", "|---|---|---|"]
    for words, verdict, note in _merged(section):
        lines.append(f"| {', '.join(f'`{word}`' for word in words)} | {verdict} | {note} |".replace("`|`", "`\\|`"))
    return "\n".join(lines) + "\n"


def _merged(section: Section) -> Iterator[tuple[list[str], Verdict, str]]:
    """Give words that follow each other and share verdict and sentence as one line."""
    for (verdict, note), words in groupby(section.words(), key=lambda word: (word.verdict, word.note)):
        yield [word.name for word in words], verdict, note
