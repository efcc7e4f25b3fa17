-- Whether jobs wait that could start now, and whether suspects are among them (see claim). For workers that have no
-- slot free and so do not claim: a supervisor starts further processes by it.
--   select * from pgqueue.backlog('{mail,default}');
create or replace function pgqueue.backlog(p_queues text[], p_exclude text[] default '{}')
returns table (waiting boolean, suspects boolean)
language plpgsql volatile
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
as $$
declare
    v_now timestamptz := pgqueue.clock();
begin
    return query select exists (
        select from unnest(p_queues) q (name) cross join generate_series(9, 0, -1) as level
         cross join lateral (
               select from pgqueue.job j
                where j.queue = q.name and j.priority = level and j.eta <= v_now
                  and j.worker is null and j.crashes = 0 and j.task <> all(p_exclude)
                order by j.eta limit 1) ready),
        exists (
        select from pgqueue.job j
         where j.crashes > 0 and j.eta <= v_now and j.worker is null
           -- An expression, so that no plan walks the whole line for it: only job_suspect is left.
           and j.queue || '' = any(p_queues) and j.task <> all(p_exclude));
end
$$;
