-- Continuations that have followed before, to follow once more: under new ids, where their caller has not chosen them.
--   select pgqueue.calls_anew('[{"id": "<job>", "task": "shop.complain"}]');
create or replace function pgqueue.calls_anew(p_calls json) returns json
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp
as $$
begin
    return (select json_agg(case when e.call ->> 'known' = 'true' or coalesce(e.call -> 'id', e.call -> 'plan') is null then e.call
                         when e.call -> 'plan' is not null then pgqueue.json_with(e.call, '{"anew": true}')
                         else pgqueue.json_with(e.call, '{"id": null}') end order by e.n)
      from json_array_elements(case json_typeof(p_calls) when 'array' then p_calls end) with ordinality as e (call, n));
end
$$;
