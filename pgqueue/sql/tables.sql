-- The tables of pgqueue. `job` holds unfinished work only; the acknowledgement of an attempt deletes the row
-- and inserts one into `result`, so `job` stays small however long results are kept.
--
-- No index covers a column that a claim changes (worker, attempt, claimed_at), and `job` leaves room on each
-- page for the new version: a claim is then a HOT update (with fillfactor 60 only two thirds of a batch of 500 are).
-- With an index on the lease holder a job cost 24 to 33 microseconds instead of 22, and 710 to 826 bytes of WAL
-- instead of 486.
--
-- Rules that keep a schema movable between servers: every table has a primary key, none is unlogged, none has
-- a trigger. The word pgqueue in these files always means the schema; its name is a setting.

create table pgqueue.job (
    id            uuid        not null primary key,
    eta           timestamptz not null,
    enqueued_at   timestamptz not null,
    expires       timestamptz,
    claimed_at    timestamptz,
    worker        uuid,
    root_id       uuid,
    parent_id     uuid,
    attempt       integer     not null default 0,
    retries       integer     not null default 0,
    crashes       integer     not null default 0,
    priority      smallint    not null default 5,
    revoked       boolean     not null default false,
    ignore_result boolean,
    task          text        not null,
    queue         text        not null default 'default',
    unique_key    text,
    args          json        not null default '[]',
    kwargs        json        not null default '{}',
    headers       json,
    error         json,
    time_limit    real,
    soft_time_limit real,
    links         json,
    errbacks      json,
    options       json,
    history       jsonb,
    requeues      smallint    not null default 0,
    steps         uuid[],
    place         integer     not null default 0,
    depth         smallint    not null default 0,
    constraint job_task_length check (length(task) between 1 and 255),
    constraint job_queue_length check (length(queue) between 1 and 100),
    constraint job_priority_range check (priority between 0 and 9),
    constraint job_unique_key_length check (length(unique_key) between 1 and 500),
    constraint job_args_is_array check (json_typeof(args) = 'array'),
    constraint job_kwargs_is_object check (json_typeof(kwargs) = 'object'),
    constraint job_lease_is_whole check ((worker is null) = (claimed_at is null))
) with (
    -- Vacuumed whenever autovacuum comes by (once a minute by default) and at full speed: what has been deleted stands
    -- at the front of the line, where every claim begins. The index is cleaned always: by default it is left alone while
    -- fewer than 2 of 100 pages are concerned, and beside a million future jobs a claim then reads 207 pages, not 30.
    -- Never truncated: that locks the table against everybody, and its pages are wanted again in a second.
    fillfactor = 50, vacuum_truncate = off, vacuum_index_cleanup = on,
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0.2,
    -- Large arguments are stored apart; what is set here for the one replaces all that it has from the other.
    toast.vacuum_truncate = off,
    toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 2000,
    toast.autovacuum_vacuum_cost_delay = 0
);

-- Without the id, although it would settle the order of jobs of the same microsecond: any look-up by id could then be
-- planned as a walk over this index when the table was last seen empty (330 ms for 50 retries beside 200,000 jobs).
create index job_line on pgqueue.job (queue, priority desc, eta);
create unique index job_unique_key on pgqueue.job (unique_key) where unique_key is not null;
-- Suspects: few, and each is claimed alone. A claim changes neither column nor condition, so it stays a HOT update.
create index job_suspect on pgqueue.job (eta) where crashes > 0;
create index job_parent on pgqueue.job (parent_id) where parent_id is not null;
create index job_root on pgqueue.job (root_id) where root_id is not null;

comment on table  pgqueue.job is 'Unfinished work: one row per requested call of a task, until its acknowledgement deletes it.';
comment on column pgqueue.job.id is 'Id of the job, the task id of Celery: a UUIDv7 made by the client, or any UUID that the caller chose.';
comment on column pgqueue.job.eta is 'Not to be claimed before: the requested time, the time of enqueueing, or the next retry.';
comment on column pgqueue.job.enqueued_at is 'When it was enqueued, by the clock of the database.';
comment on column pgqueue.job.expires is 'Not to be started after; a job claimed later ends as REVOKED. NULL: never.';
comment on column pgqueue.job.claimed_at is 'When the present attempt was claimed. NULL: nobody holds the lease.';
comment on column pgqueue.job.worker is 'The lease: id of the worker that runs it. NULL: it waits. Holds as long as that worker lives.';
comment on column pgqueue.job.root_id is 'The job with which its workflow began. NULL: itself.';
comment on column pgqueue.job.parent_id is 'The job whose task enqueued it. NULL: enqueued from outside.';
comment on column pgqueue.job.attempt is 'How many times it has been claimed; with the worker the fence that an acknowledgement must match.';
comment on column pgqueue.job.retries is 'How many repeats the task has asked for.';
comment on column pgqueue.job.crashes is 'How many attempts ended because the worker died. Above 0 it is claimed alone.';
comment on column pgqueue.job.priority is '0 to 9; 9 runs first. Default 5.';
comment on column pgqueue.job.revoked is 'Revoked while it was running: the attempt may finish, another one will not start.';
comment on column pgqueue.job.ignore_result is 'Keep no result row. NULL: as the task says.';
comment on column pgqueue.job.task is 'Name of the task, such as shop.tasks.settle.';
comment on column pgqueue.job.queue is 'The label that workers subscribe to.';
comment on column pgqueue.job.unique_key is 'At most one unfinished job has this key. NULL: no such promise.';
comment on column pgqueue.job.args is 'Positional arguments, a JSON array. Cast to jsonb to search in it.';
comment on column pgqueue.job.kwargs is 'Keyword arguments, a JSON object. Cast to jsonb to search in it.';
comment on column pgqueue.job.headers is 'What the caller sends along, a JSON object; visible to the task as self.request.headers.';
comment on column pgqueue.job.error is 'Why the last attempt was retried or lost: type, message, traceback.';
comment on column pgqueue.job.time_limit is 'Seconds after which an attempt is ended as FAILURE. NULL: as the task or the worker says.';
comment on column pgqueue.job.soft_time_limit is 'Seconds after which SoftTimeLimitExceeded is raised in the task. NULL: as the task or the worker says.';
comment on column pgqueue.job.links is 'Its continuations: an array of jobs, as enqueue_many takes them, that are enqueued when it succeeds. NULL: none.';
comment on column pgqueue.job.errbacks is 'An array of jobs, as enqueue_many takes them, that are enqueued when it ends as FAILURE or REJECTED. NULL: none.';
comment on column pgqueue.job.options is 'Rare options of the call, a JSON object that the client reads: shadow, trail, origin and so on.';
comment on column pgqueue.job.history is 'Attempts that did not end it, the newest last, 20 at most: attempt, at, state (RETRY, CRASH, REQUEUE, HOOK), error.';
comment on column pgqueue.job.requeues is 'How many times the task has rejected it to be requeued.';
comment on column pgqueue.job.steps is 'The steps that wait for it. NULL: none.';
comment on column pgqueue.job.place is 'Its place among the members of those steps, from 0 on: the order of their values.';
comment on column pgqueue.job.depth is 'In how many headers of chords it stands.';

create table pgqueue.result (
    id          uuid        not null primary key,
    enqueued_at timestamptz not null,
    claimed_at  timestamptz,
    finished_at timestamptz not null,
    worker      uuid,
    root_id     uuid,
    parent_id   uuid,
    attempt     integer     not null,
    retries     integer     not null,
    crashes     integer     not null,
    runtime     real,
    priority    smallint    not null,
    state       text        not null,
    task        text        not null,
    queue       text        not null,
    args        json        not null,
    kwargs      json        not null,
    headers     json,
    value       json,
    error       json,
    options     json,
    history     jsonb,
    steps       uuid[],
    again       json,
    constraint result_state check (state in ('SUCCESS', 'FAILURE', 'REVOKED', 'REJECTED', 'IGNORED'))
) with (
    -- prune deletes at the front of result_finished_at and walks over what it has deleted before: 4 ms for each million
    -- rows not vacuumed yet. The default, a fifth of the table, is 17 million at 1,000 jobs/s and a day.
    vacuum_truncate = off, autovacuum_vacuum_cost_delay = 0,
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_insert_scale_factor = 0.2,
    toast.vacuum_truncate = off, toast.autovacuum_vacuum_cost_delay = 0,
    toast.autovacuum_vacuum_scale_factor = 0.02, toast.autovacuum_vacuum_threshold = 2000
);

create index result_finished_at on pgqueue.result (finished_at);
create index result_not_success on pgqueue.result (state, finished_at) where state <> 'SUCCESS';
create index result_parent on pgqueue.result (parent_id) where parent_id is not null;
create index result_root on pgqueue.result (root_id) where root_id is not null;

comment on table  pgqueue.result is 'One row per finished job, inserted by the statement that deletes the job; kept for result_expires.';
comment on column pgqueue.result.id is 'Id of the job.';
comment on column pgqueue.result.enqueued_at is 'When it was enqueued.';
comment on column pgqueue.result.claimed_at is 'When its last attempt was claimed. NULL: it ended without one.';
comment on column pgqueue.result.finished_at is 'When it ended, by the clock of the database.';
comment on column pgqueue.result.worker is 'Id of the worker of the last attempt.';
comment on column pgqueue.result.root_id is 'The job with which its workflow began. NULL: itself.';
comment on column pgqueue.result.parent_id is 'The job whose task enqueued it. NULL: enqueued from outside.';
comment on column pgqueue.result.attempt is 'Number of the last attempt.';
comment on column pgqueue.result.retries is 'How many repeats the task asked for.';
comment on column pgqueue.result.crashes is 'How many attempts ended because the worker died.';
comment on column pgqueue.result.runtime is 'Seconds that the task itself ran in the last attempt.';
comment on column pgqueue.result.priority is 'Priority of the job.';
comment on column pgqueue.result.state is 'SUCCESS, FAILURE, REVOKED, REJECTED or IGNORED.';
comment on column pgqueue.result.task is 'Name of the task.';
comment on column pgqueue.result.queue is 'The queue it came from.';
comment on column pgqueue.result.args is 'Positional arguments of the last attempt.';
comment on column pgqueue.result.kwargs is 'Keyword arguments of the last attempt.';
comment on column pgqueue.result.headers is 'What the caller sent along.';
comment on column pgqueue.result.value is 'What the task returned.';
comment on column pgqueue.result.error is 'How it failed: type, module, message, args, notes, cause, traceback.';
comment on column pgqueue.result.options is 'Rare options of the call, as in job.';
comment on column pgqueue.result.history is 'Attempts that did not end it, and hooks that failed after its end, as in job.';
comment on column pgqueue.result.steps is 'The steps of its workflow that waited for it. NULL: none.';
comment on column pgqueue.result.again is 'Of a member of a workflow that did not succeed: what else its call has to say, so that retry_workflow can make it anew.';

create table pgqueue.step (
    id       uuid        not null primary key,
    made_at  timestamptz not null,
    root_id  uuid        not null,
    steps    uuid[],
    members  integer     not null,
    waits    integer     not null,
    place    integer     not null default 0,
    depth    smallint    not null default 0,
    takes    text        not null,
    task     text,
    call     json        not null,
    constraint step_takes check (takes in ('nothing', 'value', 'values')),
    constraint step_waits check (waits between 0 and members and members > 0)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);

create index step_root on pgqueue.step (root_id);

comment on table  pgqueue.step is 'Calls that wait for others to end: the next link of a chain, the body of a chord. The acknowledgement of the last one makes a job of it.';
comment on column pgqueue.step.id is 'Id of the job that it becomes.';
comment on column pgqueue.step.made_at is 'When it was made, by the clock of the database.';
comment on column pgqueue.step.root_id is 'The workflow: what all of its jobs and steps have as their root.';
comment on column pgqueue.step.steps is 'The steps that wait for this one. NULL: none.';
comment on column pgqueue.step.members is 'How many it waits for in all.';
comment on column pgqueue.step.waits is 'How many of them have not ended.';
comment on column pgqueue.step.place is 'Its place among the members of the steps that wait for it.';
comment on column pgqueue.step.depth is 'In how many headers of chords it stands.';
comment on column pgqueue.step.takes is 'Its first argument: nothing, the value of its one member, or the values of all in the order of their places.';
comment on column pgqueue.step.task is 'Name of its task. NULL: it is never run, it only gathers the values of its members.';
comment on column pgqueue.step.call is 'The call, as enqueue_many takes it.';

create table pgqueue.part (
    step    uuid     not null,
    place   integer  not null,
    job     uuid     not null,
    state   text     not null,
    culprit uuid,
    depth   smallint not null,
    value   json,
    error   json,
    primary key (step, place)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0);

comment on table  pgqueue.part is 'What the members of a step that waits for several have come to; each counts once.';
comment on column pgqueue.part.step is 'Step that waits.';
comment on column pgqueue.part.place is 'Place of the member.';
comment on column pgqueue.part.job is 'Id of the member.';
comment on column pgqueue.part.state is 'State in which it ended.';
comment on column pgqueue.part.culprit is 'The job whose failure ended it; NULL after a success.';
comment on column pgqueue.part.depth is 'Depth of the culprit.';
comment on column pgqueue.part.value is 'What it returned.';
comment on column pgqueue.part.error is 'What it failed with.';

create table pgqueue.saved_group (
    id       uuid        not null primary key,
    saved_at timestamptz not null,
    tree     json        not null
);

create index saved_group_saved_at on pgqueue.saved_group (saved_at);

comment on table  pgqueue.saved_group is 'Groups that somebody has saved, to find their results again by the id of the group.';
comment on column pgqueue.saved_group.id is 'Id of the group.';
comment on column pgqueue.saved_group.saved_at is 'When it was saved; kept as long as results are.';
comment on column pgqueue.saved_group.tree is 'The ids of the group, its parent and its members, as GroupResult.as_tuple gives them.';

create view pgqueue.workflow as
select w.root_id as id, count(*) as total, count(*) filter (where w.at = 'done') as done,
       count(*) filter (where w.at = 'failed') as failed, count(*) filter (where w.at = 'running') as running,
       count(*) filter (where w.at = 'waiting') as waiting, min(w.made_at) as made_at, max(w.finished_at) as last_at
  from (
       select j.root_id, case when j.worker is null then 'waiting' else 'running' end as at, j.enqueued_at as made_at,
              null::timestamptz as finished_at
         from pgqueue.job j where j.root_id is not null
        union all
       select s.root_id, 'waiting', s.made_at, null from pgqueue.step s where s.task is not null
        union all
       select r.root_id, case when r.state in ('SUCCESS', 'IGNORED') then 'done' else 'failed' end, r.enqueued_at, r.finished_at
         from pgqueue.result r
        where r.root_id is not null and r.task <> 'pg' || 'queue.gather'
          -- In a second life it is in two of them. Not `exists`, which may become a join with all jobs.
          and (select true from pgqueue.job j where j.id = r.id limit 1) is null
          and (select true from pgqueue.step s where s.id = r.id limit 1) is null
       ) w
 group by w.root_id;

comment on view   pgqueue.workflow is 'How far each workflow is: all jobs and steps that have one root.';
comment on column pgqueue.workflow.id is 'The root: root_id of its jobs and steps.';
comment on column pgqueue.workflow.total is 'Jobs and steps in all; those that only gather values are not counted.';
comment on column pgqueue.workflow.done is 'Ended as SUCCESS or IGNORED.';
comment on column pgqueue.workflow.failed is 'Ended as FAILURE, REVOKED or REJECTED.';
comment on column pgqueue.workflow.running is 'Claimed by a worker.';
comment on column pgqueue.workflow.waiting is 'Waiting to be claimed, or for others to end.';
comment on column pgqueue.workflow.made_at is 'When the first of them was enqueued.';
comment on column pgqueue.workflow.last_at is 'When the last of them ended.';

create table pgqueue.worker (
    id           uuid        not null primary key,
    started_at   timestamptz not null,
    beat_at      timestamptz not null,
    beats        bigint      not null default 0,
    pid          integer     not null,
    pid_started  bigint,
    slots        integer     not null,
    locked       boolean     not null default false,
    name         text        not null,
    host         text        not null,
    boot         text        not null,
    pool         text        not null,
    queues       text[]      not null,
    at_most_once text[]      not null default '{}',
    unknown      text[]      not null default '{}',
    fail_if_lost text[]      not null default '{}',
    hooked       text[]      not null default '{}'
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50);

comment on table  pgqueue.worker is 'Worker processes that are alive, or were until somebody notices.';
comment on column pgqueue.worker.id is 'Id of this life of the process; never used again.';
comment on column pgqueue.worker.started_at is 'When it registered.';
comment on column pgqueue.worker.beat_at is 'When it beat last, by the clock of the database. For people; death is judged by `beats`.';
comment on column pgqueue.worker.beats is 'Grows with every beat (10 s). Observers see whether it changes, by their own clocks.';
comment on column pgqueue.worker.pid is 'Process id on its host.';
comment on column pgqueue.worker.pid_started is 'Start time of that process in clock ticks since boot, so that a reused pid is not mistaken for it.';
comment on column pgqueue.worker.slots is 'How many attempts it runs at once.';
comment on column pgqueue.worker.locked is 'It holds the session advisory lock named after its id; a free lock then says that the session ended.';
comment on column pgqueue.worker.name is 'Name for people: name@host.';
comment on column pgqueue.worker.host is 'Host name.';
comment on column pgqueue.worker.boot is 'Identity of the running system (boot id and pid namespace): a pid is proof only where this is the same.';
comment on column pgqueue.worker.pool is 'prefork, solo, threads or asyncio.';
comment on column pgqueue.worker.queues is 'Queues it claims from, in this order.';
comment on column pgqueue.worker.at_most_once is 'Tasks acknowledged by the claim (acks_late=False): never run again after this worker died.';
comment on column pgqueue.worker.unknown is 'Task names it met and does not know; it leaves them to others.';
comment on column pgqueue.worker.fail_if_lost is 'Tasks with reject_on_worker_lost=False: they end as FAILURE if this worker dies with them.';
comment on column pgqueue.worker.hooked is 'Tasks whose failure is told to their hooks by a job of its own when others find it. An asterisk means all.';

create table pgqueue.duty (
    name   text        not null primary key,
    holder uuid        not null,
    until  timestamptz not null
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50);

comment on table  pgqueue.duty is 'Work that one process at a time does: sweeping, pruning.';
comment on column pgqueue.duty.name is 'Which duty.';
comment on column pgqueue.duty.holder is 'Worker that has it.';
comment on column pgqueue.duty.until is 'Free for others after this time.';

-- Looked up from now on, so that no enqueue walks over what was said and taken back while somebody holds an old
-- snapshot (60 ms for a single call beside 90,000 dead rows of one queue). So is every look at the small tables.
create table pgqueue.idle (
    queue  text        not null,
    worker uuid        not null,
    until  timestamptz not null,
    primary key (queue, until, worker)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50);

comment on table  pgqueue.idle is 'Workers that have said that they are idle. Only while one has, an enqueue notifies: a NOTIFY takes a lock that every commit of the database shares.';
comment on column pgqueue.idle.queue is 'Queue on which it waits.';
comment on column pgqueue.idle.worker is 'Who waits.';
comment on column pgqueue.idle.until is 'Holds until then; who still waits says it again before.';

create table pgqueue.lane (
    queue    text        not null,
    priority smallint    not null,
    eta      timestamptz not null,
    primary key (queue, priority)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50);

comment on table  pgqueue.lane is 'Where something waited when somebody looked from the very start, about a second ago; see look_back.';
comment on column pgqueue.lane.queue is 'Queue.';
comment on column pgqueue.lane.priority is 'Priority within it.';
comment on column pgqueue.lane.eta is 'The eta of the first job that waited there. A cursor beyond it goes back.';

create table pgqueue.waiter (
    job   uuid        not null,
    id    uuid        not null,
    until timestamptz not null,
    primary key (job, id)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50);

comment on table  pgqueue.waiter is 'Who waits for a result. Only while somebody does, an acknowledgement notifies.';
comment on column pgqueue.waiter.job is 'Job that is waited for.';
comment on column pgqueue.waiter.id is 'One call of get().';
comment on column pgqueue.waiter.until is 'Removed after this time if the waiting process died.';

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
