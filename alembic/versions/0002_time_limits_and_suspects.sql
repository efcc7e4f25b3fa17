-- Time limits of a call, the index that finds suspects, and tasks that are not repeated after a crash.
alter table pgqueue.job add column time_limit real, add column soft_time_limit real;
create index job_suspect on pgqueue.job (eta) where crashes > 0;
alter table pgqueue.worker add column fail_if_lost text[] not null default '{}';

comment on column pgqueue.job.crashes is 'How many attempts ended because the worker died. Above 0 it is claimed alone.';
comment on column pgqueue.job.time_limit is 'Seconds after which an attempt is ended as FAILURE. NULL: as the task or the worker says.';
comment on column pgqueue.job.soft_time_limit is 'Seconds after which SoftTimeLimitExceeded is raised in the task. NULL: as the task or the worker says.';
comment on column pgqueue.worker.fail_if_lost is 'Tasks with reject_on_worker_lost=False: they end as FAILURE if this worker dies with them.';

-- Their parameters or columns have changed, so they cannot be replaced.
drop function if exists pgqueue.claim(uuid, text[], integer, text[], boolean);
drop function if exists pgqueue.register(json);
drop function if exists pgqueue.observe(uuid);
drop function if exists pgqueue.bury(uuid, json, uuid[], integer, boolean);
