-- The error of a chord's body that will not run, because a member of its header has not succeeded.
--   select pgqueue.chord_error('<job>', 'FAILURE', '{"type": "ValueError", "module": "builtins", "message": "no"}');
create or replace function pgqueue.chord_error(p_member uuid, p_state text, p_error json) returns json
language sql immutable set search_path = pg_catalog, pg_temp
as $$
    -- The name of the module in two parts: the whole word means the schema.
    select json_build_object(
               'type', 'ChordError', 'module', 'pg' || 'queue.errors',
               'message', 'Dependency ' || p_member || case when p_state = 'FAILURE' then format(
                   ' raised %s(%s)', p_error ->> 'type', quote_literal(left(p_error ->> 'message', 1000)))
                   else ' is ' || p_state end,
               'cause', p_error);
$$;
