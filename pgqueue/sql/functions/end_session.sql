-- End a session of ours and wait until it is gone, at most p_seconds: an attempt is over its hard time limit, and its
-- open transaction holds the row that is to be acknowledged. Answers whether it is gone.
--   select pgqueue.end_session(12345, 2);
create or replace function pgqueue.end_session(p_pid integer, p_seconds double precision) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    return coalesce(pg_terminate_backend(p_pid, (p_seconds * 1000)::bigint), true);
end
$$;
