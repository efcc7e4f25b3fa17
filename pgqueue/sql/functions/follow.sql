-- The continuations of a job that has ended, as enqueue_many takes them: each gets p_first as its first argument (the
-- value, or the id of what failed) unless it is immutable, and its place in the workflow. One whose id a job or a
-- result has already is not created again.
--   select pgqueue.follow('[{"task": "shop.mail", "args": ["ada"]}]', '5', '<job>', '<root>');
create or replace function pgqueue.follow(p_calls json, p_first json, p_parent uuid, p_root uuid) returns setof json
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    -- Of a key that stands twice in an object the last one counts, so these replace what the call says itself.
    select (left(e.call::text, -1) || ',' || substring(json_build_object(
               'id', coalesce(c.id, pgqueue.new_id()), 'known', true, 'resent', true, 'checked', true,
               'args', case when c.immutable then coalesce(c.args, '[]')
                            else pgqueue.concat_arrays(json_build_array(p_first), c.args) end,
               'parent_id', p_parent, 'root_id', p_root)::text from 2))::json
      from json_array_elements(p_calls) e (call)
     cross join lateral json_to_record(e.call) as c (id uuid, args json, immutable boolean);
end
$$;
