-- End the sessions in which attempts of a worker have a transaction open, and wait until they are gone, at most
-- p_seconds each: the worker is dead and the server has not noticed, or an attempt is over its hard time limit. Their
-- transactions lock the jobs that are to be taken back. With p_pid only that one. Answers how many it has ended.
--   select pgqueue.end_sessions('<worker>', 2);
-- `hold` gives them the name by which they are found. A session of another role is left alone.
create or replace function pgqueue.end_sessions(p_worker uuid, p_seconds double precision, p_pid integer default null)
returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_count integer;
begin
    select count(*) filter (where pg_terminate_backend(a.pid, (p_seconds * 1000)::bigint)) into v_count
      from pg_stat_activity a
     where a.datname = current_database() and a.application_name = 'attempt of ' || p_worker
       and a.usename = current_user and a.pid <> pg_backend_pid() and a.pid = coalesce(p_pid, a.pid);
    return v_count;
end
$$;
