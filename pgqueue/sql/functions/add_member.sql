-- Add a member to the chord in whose header a running job stands: the body waits for it too, and gets its value after those
-- of the others. Answers false if the job has no body that waits for it, or the lease is lost.
--   select pgqueue.add_member('<job>', '<worker>', 1, '{"id": "<new>", "task": "shop.pack", "root_id": "<root>"}');
create or replace function pgqueue.add_member(p_job uuid, p_worker uuid, p_attempt integer, p_call json) returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
as $$
declare
    v_job pgqueue.job;
    v_step pgqueue.step;
begin
    if current_setting('synchronous_commit') in ('off', 'local') then
        perform set_config('synchronous_commit', 'on', true);
    end if;
    select * into v_job from pgqueue.job j
     where j.id = p_job and j.worker is not distinct from p_worker and j.attempt = p_attempt for update;
    -- Its own end is not counted yet, so the step is there still.
    update pgqueue.step s
       set members = s.members + 1, waits = s.waits + 1
     where s.id = any(v_job.steps) and s.takes = 'values' and cardinality(v_job.steps) = 1
    returning * into v_step;
    if not found then
        return false;
    end if;
    perform pgqueue.enqueue_members(json_build_array((left(rtrim(p_call::text), -1) || ',' || substring(json_build_object(
        -- After all that there are: places need not follow one another.
        'steps', v_job.steps, 'place', greatest(v_step.members - 1, 0) + 1000000, 'depth', v_job.depth)::text from 2))::json));
    return true;
end
$$;
