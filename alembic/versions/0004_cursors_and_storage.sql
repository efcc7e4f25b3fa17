-- The claim cursor, storage settings, and an idle worker who is looked up from now on.
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

-- Its arguments have changed, so it cannot be replaced.
drop function if exists pgqueue.claim(uuid, text[], integer, text[], boolean, boolean);

-- reset first: PostgreSQL keeps the order in which they were given, and this is that of a new schema.
alter table pgqueue.job reset (
    fillfactor, autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold, autovacuum_analyze_scale_factor,
    autovacuum_vacuum_cost_delay, vacuum_truncate);
alter table pgqueue.job set (
    fillfactor = 50, vacuum_truncate = off, vacuum_index_cleanup = on,
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0.2,
    toast.vacuum_truncate = off,
    toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 2000,
    toast.autovacuum_vacuum_cost_delay = 0);
alter table pgqueue.result reset (autovacuum_vacuum_insert_scale_factor, autovacuum_vacuum_cost_delay);
alter table pgqueue.result set (
    vacuum_truncate = off, autovacuum_vacuum_cost_delay = 0,
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_insert_scale_factor = 0.2,
    toast.vacuum_truncate = off, toast.autovacuum_vacuum_cost_delay = 0,
    toast.autovacuum_vacuum_scale_factor = 0.02, toast.autovacuum_vacuum_threshold = 2000);
alter table pgqueue.waiter reset (fillfactor);
alter table pgqueue.idle reset (fillfactor);
-- What a worker of the version before has said holds until it takes it back.
alter table pgqueue.idle add column until timestamptz not null default 'infinity';
alter table pgqueue.idle alter column until drop default, drop constraint idle_pkey, add primary key (queue, until, worker);
comment on column pgqueue.idle.until is 'Holds until then; who still waits says it again before.';
