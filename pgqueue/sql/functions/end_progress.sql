-- Delete what was said with set_state of jobs whose attempt has ended. A row that somebody writes at this moment is left:
-- status does not show it any more, and prune deletes it.
--   select pgqueue.end_progress('{<job>}');
create or replace function pgqueue.end_progress(p_jobs uuid[]) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off
as $$
begin
    delete from pgqueue.progress p
     where p.job = any(array(select o.job from pgqueue.progress o where o.job = any(p_jobs) for update skip locked));
end
$$;
