-- Store steps that wait; one whose id waits already is left as it is. Answers how many are new. For their form see
-- enqueue_workflow.
--   select pgqueue.store_steps('[{"id": "<b>", "task": "shop.send", "root_id": "<a>", "waits": 1, "takes": "value"}]');
create or replace function pgqueue.store_steps(p_steps json) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
as $$
declare
    v_now timestamptz := pgqueue.clock();
    v_new uuid[];
begin
    with new as (
        insert into pgqueue.step (id, made_at, root_id, steps, members, waits, place, depth, takes, task, call)
        select s.id, v_now, s.root_id, s.steps, s.waits, s.waits, coalesce(s.place, 0), coalesce(s.depth, 0::smallint),
               s.takes, s.task, e.call
          from json_array_elements(p_steps) e (call)
         cross join lateral json_to_record(e.call) as s (
               id uuid, root_id uuid, steps uuid[], waits integer, place integer, depth smallint, takes text, task text)
         order by s.id
            on conflict do nothing
        returning id
    )
    select array_agg(n.id) into v_new from new n;
    -- Where one with this id has ended before, what its members had come to is kept for retry_workflow; in the way of
    -- those of this one, it would make it wait for ever.
    if exists (select from pgqueue.part t where t.step = any(v_new)) then  -- who only enqueues may not delete
        delete from pgqueue.part t where t.step = any(v_new);
    end if;
    return coalesce(cardinality(v_new), 0);
end
$$;
