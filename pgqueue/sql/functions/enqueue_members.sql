-- Enqueue jobs for which steps may wait. One that has succeeded before, under the id that its caller chose, is not run
-- again, and counts at once. Answers NULL, or the id of a job that stands in the way of one of them by its unique_key.
--   select pgqueue.enqueue_members('[{"id": "<job>", "task": "shop.pack", "steps": ["<step>"], "place": 0}]');
create or replace function pgqueue.enqueue_members(p_calls json) returns uuid
language plpgsql volatile
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
as $$
declare
    v_given uuid[];
    v_found uuid[];
    v_parts pgqueue.part[];
    v_other uuid;
begin
    select array_agg((e.call ->> 'id')::uuid order by e.n) into v_given
      from json_array_elements(p_calls) with ordinality as e (call, n);
    select array_agg(e.id order by e.n) into v_found
      from pgqueue.enqueue_many(p_calls) with ordinality as e (id, created, n);
    if v_given <> v_found then
        select f.id into v_other
          from unnest(v_given, v_found) as f (given, id)
         where f.given is distinct from f.id limit 1;
    end if;
    if strpos(p_calls::text, '"known"') = 0 then  -- fresh ids
        return v_other;
    end if;
    -- What enqueue_many has not created has succeeded already.
    select array_agg(row(s.step, coalesce(c.place, 0), c.id, 'SUCCESS', null, coalesce(c.depth, 0), r.value, null)::pgqueue.part)
      into v_parts
      from json_to_recordset(p_calls) as c (id uuid, known boolean, steps uuid[], place integer, depth smallint)
     cross join lateral unnest(c.steps) s (step)
     cross join lateral (select r.value from pgqueue.result r where r.id = c.id and r.state = 'SUCCESS') r
     where c.known and not exists (select from pgqueue.job j where j.id = c.id);
    if v_parts is not null then
        perform pgqueue.count_in(v_parts);
    end if;
    return v_other;
end
$$;
