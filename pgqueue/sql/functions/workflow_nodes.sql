-- The jobs and steps of a workflow, the oldest first: where each is, and which of them wait for it. name: what the one
-- who made it calls it.
--   select id, name, task, state, steps from pgqueue.workflow_nodes('<root>');
create or replace function pgqueue.workflow_nodes(p_root uuid) returns table (
    id uuid, name text, task text, state text, steps uuid[], parent_id uuid, waits integer, members integer, runtime real,
    made_at timestamptz, started_at timestamptz, finished_at timestamptz, error json
)
language plpgsql stable
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    -- In two looks: an OR of the two may be a walk over the whole table; so may a union of them, which looks for an order.
    v_jobs uuid[] := array(select j.id from pgqueue.job j where j.root_id = p_root) || p_root;
    v_results uuid[] := array(select r.id from pgqueue.result r where r.root_id = p_root) || p_root;
begin
    return query
    select n.id, n.options ->> 'step', n.task, n.state, coalesce(n.steps, '{}'), n.parent_id, n.waits, n.members, n.runtime,
           n.made_at, n.started_at, n.finished_at, n.error
      from (
        select j.id, j.options, j.task,
               case when j.worker is not null then 'STARTED' when j.retries > 0 then 'RETRY' else 'PENDING' end as state,
               j.steps, j.parent_id, 0 as waits, 0 as members, null::real as runtime, j.enqueued_at as made_at,
               j.claimed_at as started_at, null::timestamptz as finished_at, j.error
          from pgqueue.job j where j.id = any(v_jobs)
         union all
        select s.id, s.call -> 'options', s.task, 'PENDING', s.steps, null, s.waits, s.members, null, s.made_at, null, null, null
          from pgqueue.step s where s.root_id = p_root
         union all
        select r.id, r.options, nullif(r.task, 'pg' || 'queue.gather'), r.state, r.steps, r.parent_id, 0, 0, r.runtime,
               r.enqueued_at, r.claimed_at, r.finished_at, r.error
          from pgqueue.result r
         -- In a second life it is in both.
         where r.id = any(v_results) and (select true from pgqueue.job j where j.id = r.id limit 1) is null
        ) n
     order by n.made_at, n.id;
end
$$;
