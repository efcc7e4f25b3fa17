-- Enqueue what follow has answered: single calls, and those that begin a workflow. `behind` such a call stand the steps
-- that wait, or none if they stand behind another; one that was enqueued before is not enqueued again, nor are they.
--   select pgqueue.enqueue_followers('[{"id": "<a>", "task": "shop.pack", "root_id": "<root>", "steps": ["<b>"], "behind":
--       [{"id": "<b>", "task": "shop.send", "waits": 1, "takes": "value"}]}]');
create or replace function pgqueue.enqueue_followers(p_calls json) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
as $$
declare
    v_single json;
    v_first json;
    v_steps json;
    v_parts pgqueue.part[];
begin
    if p_calls::text not like '%"behind"%' then  -- nearly always
        perform from pgqueue.enqueue_many(p_calls);
        return;
    end if;
    select json_agg(e.call order by e.n) filter (where e.call -> 'behind' is null),
           -- Not as resent ones, of which it is not told whether they were there before.
           json_agg(pgqueue.json_with(e.call, '{"resent": false}') order by e.n) filter (where e.call -> 'behind' is not null)
      into v_single, v_first
      from json_array_elements(p_calls) with ordinality as e (call, n);
    if v_single is not null then
        perform from pgqueue.enqueue_many(v_single);
    end if;
    if v_first is not null then
        select json_agg(pgqueue.json_with(s.step, json_build_object('root_id', c.root_id))) into v_steps
          from json_to_recordset(v_first) as c (id uuid, root_id uuid, behind json)
         cross join lateral json_array_elements(c.behind) s (step)
         -- Not `exists`, which may become a join that walks over all jobs and results.
         where (select true from pgqueue.job j where j.id = c.id limit 1) is null
           and (select true from pgqueue.result r where r.id = c.id limit 1) is null;
        if v_steps is not null then
            perform pgqueue.store_steps(v_steps);
        end if;
        v_parts := pgqueue.enqueue_steps(v_first);
        -- What follows for the second time counts nowhere: its steps may have ended.
        v_parts := array(select p from unnest(v_parts) p where p.step = any(array(select s.id from pgqueue.step s where s.id = p.step)));
        perform pgqueue.count_in(v_parts) where cardinality(v_parts) > 0;
    end if;
end
$$;
