-- What can be seen of the other workers, or of those of one boot alone: who and where they are, how often they have
-- beaten, and whether the advisory lock of each is held. `server_started` changes when a restart has dropped all locks
-- at once, which is no death. The observer judges by its own clock; see the sweep of the worker.
--   select * from pgqueue.observe('<worker>');
create or replace function pgqueue.observe(p_worker uuid, p_boot text default null) returns table (
    id uuid, name text, host text, boot text, pid integer, pid_started bigint, beats bigint, locked boolean,
    lock_held boolean, server_started timestamptz
)
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    -- Once for all: to look through the locks of the server for each worker takes 1 s for 500.
    with held as materialized (
        select l.classid::bigint << 32 | l.objid::bigint as key
          from pg_locks l
         where l.locktype = 'advisory' and l.granted and l.objsubid = 1
           and l.database = (select d.oid from pg_database d where d.datname = current_database())
    )
    select w.id, w.name, w.host, w.boot, w.pid, w.pid_started, w.beats, w.locked,
           w.locked and pgqueue.lock_key(w.id) in (select h.key from held h),
           pg_postmaster_start_time()
      from pgqueue.worker w
     where w.id <> p_worker and w.boot = coalesce(p_boot, w.boot);
end
$$;
