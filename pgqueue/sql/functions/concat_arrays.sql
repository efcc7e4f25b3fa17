-- Two JSON arrays as one, NULL being an empty one. Their texts are joined, so that no number in them changes.
--   select pgqueue.concat_arrays('[1]', '[2.0, 1e3]');
create or replace function pgqueue.concat_arrays(p_first json, p_second json) returns json
language sql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
    select ('[' || coalesce(string_agg(u.items, ',' order by u.n), '') || ']')::json
      from (select a.n, btrim(substring(a.list from 2 for length(a.list) - 2), E' \t\n\r') as items
              from (values (1, nullif(btrim(p_first::text, E' \t\n\r'), 'null')),
                           (2, nullif(btrim(p_second::text, E' \t\n\r'), 'null'))) a (n, list)) u
     where u.items <> '';
$$;
