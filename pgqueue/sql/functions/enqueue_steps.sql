-- Enqueue steps whose members have succeeded. One that cannot become a job, because an unfinished one stands in its way,
-- ends as REJECTED. Answers what counts at once, for count_in: nothing that waits is forgotten.
--   select pgqueue.enqueue_steps('[{"id": "<step>", "task": "shop.send", "root_id": "<root>"}]');
create or replace function pgqueue.enqueue_steps(p_calls json) returns pgqueue.part[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
as $$
declare
    v_other uuid;
    v_parts pgqueue.part[];
    v_step pgqueue.step;
    v_error json;
    v_next uuid;
begin
    select m.other, m.parts into v_other, v_parts from pgqueue.enqueue_members(p_calls) m;
    if v_other is null then
        return v_parts;
    end if;
    -- `waits` is 0: it is a whole job, and will be one again if retry_workflow brings it back.
    for v_step in
        select c.id, pgqueue.clock() as made_at, c.root_id, c.steps, 0 as members, 0 as waits,
               coalesce(c.place, 0) as place, coalesce(c.depth, 0::smallint) as depth, 'nothing' as takes, c.task, e.call
          from json_array_elements(p_calls) e (call)
         cross join lateral json_to_record(e.call) as c (
               id uuid, root_id uuid, steps uuid[], place integer, depth smallint, task text)
         -- Not `exists`, which may become a join that walks over all jobs and results.
         where (select true from pgqueue.job j where j.id = c.id and j.steps is not distinct from c.steps limit 1) is null
           and (select true from pgqueue.result r where r.id = c.id and r.state = 'SUCCESS' limit 1) is null
    loop
        v_error := json_build_object(
            'type', 'TaskRejectedError', 'module', 'pg' || 'queue.errors',
            'message', format('job %s stands in the way of this one: it has not ended, and has its unique_key or its id', v_other));
        perform pgqueue.end_step(v_step, 'REJECTED', v_error, null);
        foreach v_next in array coalesce(v_step.steps, '{}') loop
            v_parts := array_append(v_parts, row(v_next, v_step.place, v_step.id, 'REJECTED', v_step.id, v_step.depth, null,
                                                 v_error)::pgqueue.part);
        end loop;
    end loop;
    return v_parts;
end
$$;
