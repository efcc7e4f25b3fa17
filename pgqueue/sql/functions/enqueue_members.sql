-- Enqueue jobs for which steps may wait. Answers
--   other: a job that stands in the way of one of them: it has its unique_key, or its id and is waited for by others.
--   parts: what counts at once, for count_in: who has succeeded before, under an id that its caller chose, is not run again.
--   select * from pgqueue.enqueue_members('[{"id": "<job>", "task": "shop.pack", "steps": ["<step>"], "place": 0}]');
create or replace function pgqueue.enqueue_members(p_calls json, out other uuid, out parts pgqueue.part[])
language plpgsql volatile
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
as $$
declare
    v_not uuid[];
begin
    select array_agg(c.given) filter (where c.given = e.id and not e.created),
           (array_agg(e.id order by e.n) filter (where c.given <> e.id))[1]
      into v_not, other
      from pgqueue.enqueue_many(p_calls) with ordinality as e (id, created, n)
      join (select a.n, (a.call ->> 'id')::uuid as given
              from json_array_elements(p_calls) with ordinality as a (call, n)) c on c.n = e.n;
    if v_not is null then
        return;
    end if;
    select coalesce(other, (array_agg(c.id) filter (where r.id is null and j.steps is distinct from c.steps))[1]),
           array_agg(row(s.step, coalesce(c.place, 0), c.id, 'SUCCESS', null, coalesce(c.depth, 0), r.value, null)::pgqueue.part)
               filter (where r.id is not null and s.step is not null)
      into other, parts
      from json_to_recordset(p_calls) as c (id uuid, steps uuid[], place integer, depth smallint)
      -- Each by itself: without the limit this may become a join that walks over all jobs and results.
      left join lateral (select o.id, o.value from pgqueue.result o where o.id = c.id and o.state = 'SUCCESS' limit 1) r on true
      left join lateral (select o.steps from pgqueue.job o where o.id = c.id limit 1) j on true
      left join lateral unnest(c.steps) s (step) on true
     where c.id = any(v_not);
end
$$;
