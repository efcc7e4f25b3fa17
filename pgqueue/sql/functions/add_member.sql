-- Add a member to the chord in whose header a running job stands: the body waits for it too, and gets its value after those
-- of the others. Answers false if the job has no body that waits for it, or the lease is lost.
--   select pgqueue.add_member('<job>', '<worker>', 1, '{"id": "<new>", "task": "shop.pack", "root_id": "<root>"}');
create or replace function pgqueue.add_member(p_job uuid, p_worker uuid, p_attempt integer, p_call json) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
as $$
declare
    v_id uuid := (p_call ->> 'id')::uuid;
    v_job pgqueue.job;
    v_step pgqueue.step;
    v_other uuid;
begin
    if current_setting('synchronous_commit') in ('off', 'local') then
        perform set_config('synchronous_commit', 'on', true);
    end if;
    select * into v_job from pgqueue.job j
     where j.id = p_job and j.worker is not distinct from p_worker and j.attempt = p_attempt for update;
    if exists (select from pgqueue.job j where j.id = v_id and j.steps = v_job.steps)
       or exists (select from pgqueue.result r where r.id = v_id and r.steps = v_job.steps) then
        return true;  -- said before, and the answer got lost
    end if;
    -- Its own end is not counted yet, so the step is there still.
    update pgqueue.step s
       set members = s.members + 1, waits = s.waits + 1
     where s.id = any(v_job.steps) and s.takes = 'values' and cardinality(v_job.steps) = 1
    returning * into v_step;
    if not found then
        return false;
    end if;
    select m.other into v_other
      from pgqueue.enqueue_members(json_build_array(pgqueue.json_with(p_call, json_build_object(
           -- After all that there are: places need not follow one another.
           'steps', v_job.steps, 'place', v_step.members - 1 + 1000000, 'depth', v_job.depth)))) m;
    if v_other is not null then
        raise exception 'job % stands in the way of the new member: it has not ended, and has its unique_key or its id', v_other
            using errcode = 'PQ002', hint = 'Leave out unique_key and task_id, or wait until that job has ended.';
    end if;
    return true;
end
$$;
