-- What time it is: the database's clock decides about eta, countdown and expires, never that of a client.
-- Tests set it for a session: set pgqueue_clock.now = '2030-01-01 12:00+00';
create or replace function pgqueue.clock() returns timestamptz
language sql volatile parallel safe set search_path = pg_catalog, pg_temp
as $$
    select coalesce(nullif(current_setting('pgqueue_clock.now', true), '')::timestamptz, clock_timestamp());
$$;
