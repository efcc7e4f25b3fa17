-- The plan of a workflow that takes the place of a job, for enqueue_workflow: the node that has the id of the job gets
-- what waits for it, its continuations, its unique_key and its number of attempts, and stands for it: its errbacks are
-- enqueued wherever in the plan something fails. All get its root, and stand as deep as it did.
--   select pgqueue.plan_in_place(j, '[{"id": "..", "task": "shop.pack"}]') from pgqueue.job j where j.id = '<job>';
create or replace function pgqueue.plan_in_place(p_job pgqueue.job, p_plan json) returns json
language sql stable set search_path = pg_catalog, pg_temp
as $$
    select json_agg(pgqueue.json_with(e.call, pgqueue.json_with(
               json_build_object('root_id', coalesce(p_job.root_id, p_job.id), 'depth', coalesce(c.depth, 0) + p_job.depth,
                                 'parent_id', case when c.id = p_job.id then p_job.parent_id else p_job.id end),
               case when c.id = p_job.id then json_build_object(
                   'steps', p_job.steps, 'place', p_job.place, 'attempt', p_job.attempt, 'known', false, 'stands_for', true,
                   'unique_key', p_job.unique_key, 'links', pgqueue.concat_arrays(p_job.links, e.call -> 'links'),
                   'errbacks', pgqueue.concat_arrays(p_job.errbacks, e.call -> 'errbacks')) else '{}' end)) order by e.n)
      from json_array_elements(p_plan) with ordinality as e (call, n)
     cross join lateral json_to_record(e.call) as c (id uuid, depth smallint);
$$;
