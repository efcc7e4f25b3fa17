-- What save_group has kept of a group; NULL if nothing.
--   select pgqueue.saved_group('<group>');
create or replace function pgqueue.saved_group(p_id uuid) returns json
language sql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
    select g.tree from pgqueue.saved_group g where g.id = p_id;
$$;
