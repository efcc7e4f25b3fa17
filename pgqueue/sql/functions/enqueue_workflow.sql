-- Enqueue a workflow: the jobs that can start, and the steps that wait for them, all or none.
--   select pgqueue.enqueue_workflow(
--       '[{"id": "<b>", "task": "shop.send", "root_id": "<a>", "waits": 1, "takes": "value"}]',
--       '[{"id": "<a>", "task": "shop.pack", "root_id": "<a>", "steps": ["<b>"]}]');
-- An element is a job as enqueue_many takes it, with an id and a root_id, and with
--   steps, place, depth: the ids of the steps that wait for it, its place among their members, from 0 on, and in how many
--     headers of chords it stands;
--   waits, takes: of a step, for how many others it waits, and what its first argument is: nothing, the value of its one
--     member, or the values of all, in the order of their places. A step whose task is null is never run: it gathers the
--     values of its members for the steps that wait for it.
-- p_resent: the same was sent before and the answer got lost. p_durable: as in enqueue_many.
create or replace function pgqueue.enqueue_workflow(
    p_steps json, p_jobs json, p_resent boolean default false, p_durable boolean default false
) returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
as $$
declare
    v_first uuid := coalesce(p_steps -> 0 ->> 'id', p_jobs -> 0 ->> 'id')::uuid;
    v_calls json;
    v_other uuid;
    v_parts pgqueue.part[];
begin
    if p_durable and current_setting('synchronous_commit') in ('off', 'local') then
        perform set_config('synchronous_commit', 'on', true);
    end if;
    -- One of them is proof of all: they were committed together.
    if p_resent and (exists (select from pgqueue.job j where j.id = v_first)
                     or exists (select from pgqueue.result r where r.id = v_first)
                     or exists (select from pgqueue.step s where s.id = v_first)) then
        return;
    end if;

    select json_agg(e.call order by e.n) into v_calls
      from json_array_elements(p_steps) with ordinality as e (call, n)
     where e.call ->> 'task' is not null;
    if v_calls is not null then
        perform pgqueue.check_calls(v_calls, 'steps');
        -- What cannot be read as enqueue_many will read it is better found out now.
        perform count(g) from json_to_recordset(v_calls) as g (
            id uuid, priority smallint, eta timestamptz, countdown double precision, expires timestamptz,
            expires_in double precision, parent_id uuid, ignore_result boolean, time_limit real, soft_time_limit real);
    end if;

    if pgqueue.store_steps(p_steps) <> json_array_length(p_steps) then
        raise exception 'a step with one of these ids waits already' using errcode = 'PQ002',
            hint = 'Give each call of a workflow an id of its own, or none.';
    end if;

    if json_array_length(p_jobs) > 0 then
        select m.other, m.parts into v_other, v_parts from pgqueue.enqueue_members(p_jobs) m;
        if v_other is not null then
            raise exception 'job % stands in the way of a call of the workflow: it has not ended, and has its unique_key or its id', v_other
                using errcode = 'PQ002', hint = 'Leave out unique_key and task_id, or wait until that job has ended.';
        end if;
        if v_parts is not null then  -- asked here: who only enqueues may not call it
            perform pgqueue.count_in(v_parts);
        end if;
    end if;
end
$$;
