-- The jobs and steps of a workflow, the oldest first: where each is, and which of them wait for it.
--   select id, task, state, steps from pgqueue.workflow_nodes('<root>');
create or replace function pgqueue.workflow_nodes(p_root uuid) returns table (
    id uuid, task text, state text, steps uuid[], parent_id uuid, waits integer, members integer, runtime real,
    made_at timestamptz, started_at timestamptz, finished_at timestamptz, error json
)
language plpgsql stable
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
as $$
#variable_conflict use_column
begin
    return query
    select n.* from (
        select j.id, j.task, case when j.worker is not null then 'STARTED' when j.retries > 0 then 'RETRY' else 'PENDING' end,
               j.steps, j.parent_id, 0, 0, null::real, j.enqueued_at as made_at, j.claimed_at, null::timestamptz, j.error
          from pgqueue.job j where j.root_id = p_root or j.id = p_root
         union all
        select s.id, s.task, 'PENDING', s.steps, null, s.waits, s.members, null, s.made_at, null, null, null
          from pgqueue.step s where s.root_id = p_root
         union all
        select r.id, nullif(r.task, 'pg' || 'queue.gather'), r.state, r.steps, r.parent_id, 0, 0, r.runtime, r.enqueued_at,
               r.claimed_at, r.finished_at, r.error
          from pgqueue.result r
         where (r.root_id = p_root or r.id = p_root)
           -- In a second life it is in both.
           and r.id <> all(array(select j.id from pgqueue.job j where j.root_id = p_root or j.id = p_root))
        ) n
     order by n.made_at, n.id;
end
$$;
