-- Delete what save_group has kept of a group; answers whether there was something.
--   select pgqueue.delete_group('<group>');
create or replace function pgqueue.delete_group(p_id uuid) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp set enable_seqscan = off
as $$
begin
    delete from pgqueue.saved_group g where g.id = p_id;
    return found;
end
$$;
