-- Where a job is, and what became of it: one row, also for an id that nobody knows (state UNKNOWN). While an attempt runs,
-- state and value are what it has said with set_state.
--   select * from pgqueue.status('<job>');
create or replace function pgqueue.status(p_job uuid) returns table (
    state text, value json, error json, task text, queue text, args json, kwargs json, retries integer,
    attempt integer, worker uuid, finished_at timestamptz, parent_id uuid, root_id uuid, history jsonb, options json,
    headers json, enqueued_at timestamptz, crashes integer
)
language plpgsql stable set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off
as $$
#variable_conflict use_column
begin
    -- One statement, so one snapshot: the commit that moves a job to its result is seen whole or not at all.
    return query
    select s.state, s.value, s.error, s.task, s.queue, s.args, s.kwargs, s.retries, s.attempt, s.worker, s.finished_at,
           s.parent_id, s.root_id, s.history, s.options, s.headers, s.enqueued_at, s.crashes
      from (select 1 as place,
                   case when p.state is not null then p.state when j.worker is not null then 'STARTED'
                        when j.retries > 0 then 'RETRY' else 'PENDING' end as state,
                   p.meta as value, j.error, j.task, j.queue, j.args, j.kwargs, j.retries, j.attempt, j.worker,
                   null::timestamptz as finished_at,
                   j.parent_id, j.root_id, j.history, j.options, j.headers, j.enqueued_at, j.crashes
              from pgqueue.job j
              left join pgqueue.progress p
                on p.job = j.id and p.attempt = j.attempt and p.worker is not distinct from j.worker
             where j.id = p_job
             union all
            select 3, r.state, r.value, r.error, r.task, r.queue, r.args, r.kwargs, r.retries, r.attempt, r.worker, r.finished_at,
                   r.parent_id, r.root_id, r.history, r.options, r.headers, r.enqueued_at, r.crashes
              from pgqueue.result r where r.id = p_job
             union all
            -- It is enqueued when those for which it waits have succeeded.
            select 2, 'PENDING', null, null, coalesce(s.task, 'pg' || 'queue.gather'), coalesce(c.queue, 'default'),
                   coalesce(c.args, '[]'), coalesce(c.kwargs, '{}'), 0, 0, null, null, c.parent_id, s.root_id, null,
                   c.options, c.headers, s.made_at, 0
              from pgqueue.step s
             cross join lateral json_to_record(s.call) as c (
                   queue text, args json, kwargs json, parent_id uuid, options json, headers json)
             where s.id = p_job
             union all
            select 4, 'UNKNOWN', null, null, null, null, null, null, null, null, null, null, null, null, null, null, null,
                   null, null
           ) s
     order by s.place
     limit 1;
end
$$;
