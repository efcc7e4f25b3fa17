-- The key of the session advisory lock that a worker holds while its session lives: the last 64 bits of its id,
-- which are random in a UUIDv7.
--   select pg_try_advisory_lock(pgqueue.lock_key('<worker>'));
create or replace function pgqueue.lock_key(p_worker uuid) returns bigint
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
    select ('x' || right(replace(p_worker::text, '-', ''), 16))::bit(64)::bigint;
$$;
