-- Add an entry to the history of a job, after its attempt was acknowledged: how a hook of it failed. Answers false if
-- there is neither job nor result any more.
--   select pgqueue.attach('<job>', '{"attempt": 1, "state": "HOOK", "hook": "on_success"}');
create or replace function pgqueue.attach(p_job uuid, p_entry jsonb) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off set lock_timeout = '2s'
as $$
declare
    v_entry jsonb := jsonb_build_object('at', pgqueue.clock()) || p_entry;
begin
    update pgqueue.job j set history = pgqueue.add_entry(j.history, v_entry) where j.id = p_job;
    if not found then
        update pgqueue.result r set history = pgqueue.add_entry(r.history, v_entry) where r.id = p_job;
    end if;
    return found;
end
$$;
