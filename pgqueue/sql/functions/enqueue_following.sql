-- Enqueue a workflow that follows a job. Where all of its steps are known, or have ended, it has followed before, and
-- nothing is done; where some are (their caller has chosen their ids, and given them to two), this run has ids of its own.
--   select pgqueue.enqueue_following('{"plan": [
--       {"id": "<a>", "task": "shop.pack", "args": [5], "root_id": "<root>", "steps": ["<b>"]},
--       {"id": "<b>", "task": "shop.send", "root_id": "<root>", "waits": 1, "takes": "value"}]}');
-- anew: it has followed before, in an attempt that a retry has undone, and has new ids now.
create or replace function pgqueue.enqueue_following(p_workflow json) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
as $$
declare
    v_plan json := p_workflow -> 'plan';
    v_anew boolean := coalesce((p_workflow ->> 'anew')::boolean, false);
    v_ids uuid[];
    v_known bigint;
    v_steps json;
    v_first json;
    v_parts pgqueue.part[];
begin
    v_ids := array(select (r.call ->> 'id')::uuid from json_array_elements(v_plan) r (call) where r.call -> 'waits' is not null);
    if not v_anew then
        -- Not `exists`, which may become a join that walks over all of them.
        select count(coalesce((select true from pgqueue.step t where t.id = s.id limit 1),
                              (select true from pgqueue.job j where j.id = s.id limit 1),
                              (select true from pgqueue.result r where r.id = s.id limit 1)))
          into v_known from unnest(v_ids) s (id);
        if v_known = cardinality(v_ids) then
            return;
        end if;
    end if;
    if v_anew or v_known > 0 then
        v_plan := pgqueue.plan_anew(v_plan);
    end if;
    select json_agg(r.call order by r.n) filter (where r.call -> 'waits' is not null),
           -- Not as resent ones, of which it is not told whether they were there before.
           json_agg(pgqueue.json_with(r.call, '{"resent": false}') order by r.n) filter (where r.call -> 'waits' is null)
      into v_steps, v_first
      from json_array_elements(v_plan) with ordinality as r (call, n);
    if pgqueue.store_steps(v_steps) <> json_array_length(v_steps) then
        raise exception 'another transaction has just enqueued the same workflow' using errcode = '40001';
    end if;
    v_parts := pgqueue.enqueue_steps(v_first);
    perform pgqueue.count_in(v_parts) where v_parts is not null;
end
$$;
