-- Delete waiting jobs of the queues named, at most p_limit; running ones stay. Answers how many; call it again
-- until it answers 0. What it deletes leaves no result.
--   select pgqueue.purge('{mail}');
create or replace function pgqueue.purge(p_queues text[], p_limit integer default 10000) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off
as $$
declare
    v_count integer;
begin
    delete from pgqueue.job j
     where j.id = any(array(
           select w.id from pgqueue.job w
            where w.queue = any(p_queues) and w.worker is null
            limit p_limit for update skip locked));
    get diagnostics v_count = row_count;
    return v_count;
end
$$;
