-- Notify the workers that have said that they are idle on these queues: jobs have come back to be claimed at once.
--   select pgqueue.call_idle('{mail,default}');
create or replace function pgqueue.call_idle(p_queues text[]) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off
as $$
declare
    v_now timestamptz := pgqueue.clock();
begin
    perform pg_notify('pgqueue.work', q.name)
       from (select distinct u.name from unnest(p_queues) u (name)) q
      -- Not `exists`, which may become a join that walks over all that was ever said.
      where (select true from pgqueue.idle i where i.queue = q.name and i.until > v_now limit 1);
end
$$;
