-- The claim cursor.
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
