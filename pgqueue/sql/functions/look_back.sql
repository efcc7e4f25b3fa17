-- What claims have passed over: workers begin to look at their cursors (see claim), so a job that was committed late, or
-- that another worker let go, may stand below. Answers the time, and for each of these queues and each priority
-- the eta of the first job that waited when somebody looked last; one row without a queue if nothing waited.
--   select * from pgqueue.look_back('{mail,default}');
-- p_search looks now, at all queues that are served: from the very start, so it is as slow as the claim that the cursors
-- avoid. One worker at a time does that (duty `look_back`), about once a second and for 2 % of its time, but
-- every ten seconds at least.
create or replace function pgqueue.look_back(p_queues text[], p_search boolean default false)
returns table (now timestamptz, queue text, priority smallint, eta timestamptz)
language plpgsql volatile
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    v_now timestamptz := pgqueue.clock();
begin
    if p_search then
        with line as materialized (
            select distinct q.name from pgqueue.worker w cross join lateral unnest(w.queues) q (name)
        ), looked as materialized (
            select line.name, level::smallint as level, (
                   select j.eta from pgqueue.job j
                    where j.queue = line.name and j.priority = level and j.eta <= v_now
                      and j.worker is null and j.crashes = 0
                    order by j.eta limit 1) as eta
              from line cross join generate_series(0, 9) as level
        ), forgotten as (
            delete from pgqueue.lane l
             where not exists (select from looked o where o.name = l.queue and o.level = l.priority and o.eta is not null)
        )
        insert into pgqueue.lane as l (queue, priority, eta)
        select o.name, o.level, o.eta from looked o where o.eta is not null
            on conflict (queue, priority) do update set eta = excluded.eta where l.eta <> excluded.eta;
    end if;
    return query
    select v_now, l.queue, l.priority, l.eta
      from (values (true)) one left join pgqueue.lane l on l.queue = any(p_queues);
end
$$;
