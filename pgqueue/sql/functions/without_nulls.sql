-- An object without the keys whose value is null; what stands deeper in it stays as it is.
--   select pgqueue.without_nulls('{"a": null, "b": {"c": null}}');
create or replace function pgqueue.without_nulls(p_object json) returns json
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
    select coalesce(json_object_agg(e.key, e.value), '{}') from json_each(p_object) e where json_typeof(e.value) <> 'null';
$$;
