-- Enqueue steps whose members have succeeded. One that cannot become a job, because an unfinished one has its unique_key,
-- ends as REJECTED, and what waits for it with it: nothing that waits is forgotten.
--   select pgqueue.enqueue_steps('[{"id": "<step>", "task": "shop.send", "root_id": "<root>"}]');
create or replace function pgqueue.enqueue_steps(p_calls json) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_other uuid := pgqueue.enqueue_members(p_calls);
    v_step pgqueue.step;
    v_error json;
begin
    if v_other is null then
        return;
    end if;
    -- None of those that were refused has been made; the others are there, and are made no second time.
    for v_step in
        select c.id, pgqueue.clock() as made_at, c.root_id, c.steps, coalesce(c.waits, 1) as members, 0 as waits,
               coalesce(c.place, 0) as place, coalesce(c.depth, 0::smallint) as depth,
               coalesce(c.takes, 'nothing') as takes, c.task, e.call
          from json_array_elements(p_calls) e (call)
         cross join lateral json_to_record(e.call) as c (
               id uuid, root_id uuid, steps uuid[], waits integer, place integer, depth smallint, takes text, task text)
         where not exists (select from pgqueue.job j where j.id = c.id)
           and not exists (select from pgqueue.result r where r.id = c.id and r.state = 'SUCCESS')
    loop
        v_error := json_build_object(
            'type', 'TaskRejectedError', 'module', 'pg' || 'queue.errors',
            'message', format('job %s has the unique_key of this one and has not ended', v_other));
        perform pgqueue.end_step(v_step, 'REJECTED', v_error, null);
        perform pgqueue.count_in(array(
                select row(n.id, v_step.place, v_step.id, 'REJECTED', v_step.id, v_step.depth, null, v_error)::pgqueue.part
                  from unnest(v_step.steps) n (id)));
    end loop;
end
$$;
