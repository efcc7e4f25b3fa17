-- Keep which results belong to a group, for saved_group; as long as results are kept.
--   select pgqueue.save_group('<group>', '[["<group>", null], [[["<job>", null], null]]]');
create or replace function pgqueue.save_group(p_id uuid, p_tree json) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_now timestamptz := pgqueue.clock();
begin
    insert into pgqueue.saved_group as g (id, saved_at, tree) values (p_id, v_now, p_tree)
        on conflict (id) do update set saved_at = excluded.saved_at, tree = excluded.tree;
end
$$;
