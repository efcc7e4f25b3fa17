-- Workflows: steps that wait for others, parts that have ended, and what a job has to say of both.
-- Its arguments have changed, so it cannot be replaced.
drop function if exists pgqueue.enqueue_alike(json, integer[], uuid[], json[], json[], boolean);

alter table pgqueue.job add column steps uuid[], add column place integer not null default 0,
    add column depth smallint not null default 0;
create index if not exists job_root on pgqueue.job (root_id) where root_id is not null;
comment on column pgqueue.job.steps is 'The steps that wait for it. NULL: none.';
comment on column pgqueue.job.place is 'Its place among the members of those steps, from 0 on: the order of their values.';
comment on column pgqueue.job.depth is 'In how many headers of chords it stands.';

alter table pgqueue.result add column steps uuid[], add column again json;
create index if not exists result_root on pgqueue.result (root_id) where root_id is not null;
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
