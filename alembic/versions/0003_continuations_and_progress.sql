-- Continuations, errbacks, history and progress.
alter table pgqueue.job add column links json, add column errbacks json, add column options json,
    add column history jsonb, add column requeues smallint not null default 0;
alter table pgqueue.result add column options json, add column history jsonb;
alter table pgqueue.worker add column hooked text[] not null default '{}';
create index job_parent on pgqueue.job (parent_id) where parent_id is not null;
create index result_parent on pgqueue.result (parent_id) where parent_id is not null;

comment on column pgqueue.job.links is 'Its continuations: an array of jobs, as enqueue_many takes them, that are enqueued when it succeeds. NULL: none.';
comment on column pgqueue.job.errbacks is 'An array of jobs, as enqueue_many takes them, that are enqueued when it ends as FAILURE or REJECTED. NULL: none.';
comment on column pgqueue.job.options is 'Rare options of the call, a JSON object that the client reads: shadow, trail, origin and so on.';
comment on column pgqueue.job.history is 'Attempts that did not end it, the newest last, 20 at most: attempt, at, state (RETRY, CRASH, REQUEUE, HOOK), error.';
comment on column pgqueue.job.requeues is 'How many times the task has rejected it to be requeued.';
comment on column pgqueue.result.options is 'Rare options of the call, as in job.';
comment on column pgqueue.result.history is 'Attempts that did not end it, and hooks that failed after its end, as in job.';
comment on column pgqueue.worker.hooked is 'Tasks whose failure is told to their hooks by a job of its own when others find it. An asterisk means all.';

create table pgqueue.progress (
    job     uuid        not null primary key,
    worker  uuid,
    attempt integer     not null,
    state   text        not null,
    meta    json,
    at      timestamptz not null
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);

comment on table  pgqueue.progress is 'What running tasks say of themselves with set_state. Holds for one attempt, and is deleted when that ends.';
comment on column pgqueue.progress.job is 'Job that it is about.';
comment on column pgqueue.progress.worker is 'Worker of the attempt. NULL: said while nobody held the lease.';
comment on column pgqueue.progress.attempt is 'Attempt of the job at that time; status shows nothing of an earlier one.';
comment on column pgqueue.progress.state is 'Any word that is not the state of a finished job, such as PROGRESS.';
comment on column pgqueue.progress.meta is 'What goes with it; status shows it as the value.';
comment on column pgqueue.progress.at is 'When it was said, by the clock of the database.';

-- Their columns have changed, so they cannot be replaced.
drop function if exists pgqueue.claim(uuid, text[], integer, text[], boolean, boolean);
drop function if exists pgqueue.status(uuid);
