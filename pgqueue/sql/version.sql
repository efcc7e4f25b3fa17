-- Which tables and functions these are: the revision of the tables and a digest of the functions.
--   select pgqueue.version();
create or replace function pgqueue.version() returns text
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$ select '{version}'::text $$;
