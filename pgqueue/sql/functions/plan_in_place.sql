-- The plan of a workflow that takes the place of a job, for enqueue_workflow: the node that has the id of the job gets
-- what waits for it, its continuations and its number of attempts; all get its root, and stand as deep as it did.
--   select pgqueue.plan_in_place(j, '[{"id": "..", "task": "shop.pack"}]') from pgqueue.job j where j.id = '<job>';
create or replace function pgqueue.plan_in_place(p_job pgqueue.job, p_plan json) returns json
language sql stable set search_path = pg_catalog, pg_temp
as $$
    -- Of a key that stands twice in an object the last one counts.
    select json_agg((left(rtrim(e.call::text), -1) || ',' || substring((
               jsonb_build_object('root_id', coalesce(p_job.root_id, p_job.id), 'depth', coalesce(c.depth, 0) + p_job.depth,
                                  'parent_id', case when c.id = p_job.id then p_job.parent_id else p_job.id end)
               || case when c.id = p_job.id then jsonb_build_object(
                      'steps', p_job.steps, 'place', p_job.place, 'attempt', p_job.attempt, 'known', false) else '{}' end
               )::text from 2))::json order by e.n)
      from (select e.n, case when (e.call ->> 'id')::uuid <> p_job.id then e.call
                             else (left(rtrim(e.call::text), -1)
                                   || ',"links":' || pgqueue.concat_arrays(p_job.links, e.call -> 'links')
                                   || ',"errbacks":' || pgqueue.concat_arrays(p_job.errbacks, e.call -> 'errbacks')
                                   || '}')::json end as call
              from json_array_elements(p_plan) with ordinality as e (call, n)) e
     cross join lateral json_to_record(e.call) as c (id uuid, depth smallint);
$$;
