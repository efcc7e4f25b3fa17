-- Delete results older than p_keep, the oldest first, at most p_limit: small batches, so that nobody waits long.
-- Workers call it about once a second while it finds something, else once a minute. Answers how many it deleted.
--   select pgqueue.prune('1 day', 1000);
create or replace function pgqueue.prune(p_keep interval, p_limit integer default 1000) returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp set lock_timeout = '2s' set enable_seqscan = off
as $$
declare
    v_before timestamptz := pgqueue.clock() - p_keep;
    v_count integer;
begin
    delete from pgqueue.result r
     where r.id = any(array(
           select o.id from pgqueue.result o
            where o.finished_at < v_before
            order by o.finished_at limit p_limit for update skip locked));
    get diagnostics v_count = row_count;
    -- What a process that waited for a result left behind when it was killed.
    delete from pgqueue.waiter w where w.until < v_before + p_keep;
    return v_count;
end
$$;
