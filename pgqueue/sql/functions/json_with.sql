-- An object with more keys. Texts are joined, so that no number changes; of a key that stands twice the last one counts.
--   select pgqueue.json_with('{"a": 1.0}', '{"b": 2}');
create or replace function pgqueue.json_with(p_object json, p_more json) returns json
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
    select case when p_more::text ~ '^\s*\{\s*\}\s*$' then p_object
                when p_object::text ~ '^\s*\{\s*\}\s*$' then p_more
                else (left(btrim(p_object::text, E' \t\n\r'), -1) || ','
                      || substring(btrim(p_more::text, E' \t\n\r') from 2))::json end;
$$;
