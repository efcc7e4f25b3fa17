-- Delete waiting jobs of the queues named, at most p_limit; running ones stay. Answers how many; call it again
-- until it answers 0. What it deletes leaves no result; steps of workflows that wait for it end as REVOKED.
--   select pgqueue.purge('{mail}');
create or replace function pgqueue.purge(p_queues text[], p_limit integer default 10000) returns integer
language plpgsql volatile set jit = off set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off
as $$
declare
    v_count integer;
    v_parts pgqueue.part[];
begin
    with gone as (
        delete from pgqueue.job j
         where j.id = any(array(
               select w.id from pgqueue.job w
                where w.queue = any(p_queues) and w.worker is null
                limit p_limit for update skip locked))
        returning j.id, j.steps, j.place, j.depth
    )
    select count(*), (select array_agg(row(s.step, g.place, g.id, 'REVOKED', g.id, g.depth, null, json_build_object(
                             'type', 'TaskRevokedError', 'module', 'pg' || 'queue.errors', 'message', 'purged'))::pgqueue.part)
                        from gone g cross join lateral unnest(g.steps) s (step))
      into v_count, v_parts from gone;
    if v_parts is not null then
        perform pgqueue.count_in(v_parts);
    end if;
    return v_count;
end
$$;
