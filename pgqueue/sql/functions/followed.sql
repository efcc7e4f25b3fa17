-- One call that follows a job, as enqueue_many takes it; see follow. `chosen`: whether its caller has chosen its id.
--   select pgqueue.followed('{"task": "shop.mail", "args": ["ada"]}', '5', '<job>', '<root>');
create or replace function pgqueue.followed(p_call json, p_first json, p_parent uuid, p_root uuid) returns json
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    -- Of a key that stands twice in an object the last one counts, so these replace what the call says itself.
    return (select (left(p_call::text, -1) || ',' || substring(json_build_object(
               'id', coalesce(c.id, pgqueue.new_id()), 'chosen', c.known, 'known', true, 'resent', true, 'checked', true,
               'args', case when c.immutable then coalesce(c.args, '[]')
                            else pgqueue.concat_arrays(json_build_array(p_first), c.args) end,
               'parent_id', p_parent, 'root_id', p_root)::text from 2))::json
              from json_to_record(p_call) as c (id uuid, args json, immutable boolean, known boolean));
end
$$;
