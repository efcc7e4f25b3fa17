-- Whether somebody holds the session advisory lock of a worker: then its session lives.
--   select pgqueue.lock_held('<worker>');
create or replace function pgqueue.lock_held(p_worker uuid) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_key bigint := pgqueue.lock_key(p_worker);
begin
    return exists (
        select from pg_locks l
         where l.locktype = 'advisory' and l.granted and l.objsubid = 1
           and l.database = (select d.oid from pg_database d where d.datname = current_database())
           and (l.classid::bigint << 32 | l.objid::bigint) = v_key);
end
$$;
