-- Enqueue what failure_calls has answered. Failures must be stored in any case, so what cannot be enqueued, now or later,
-- is left out with a warning. NULL: nothing.
--   select pgqueue.enqueue_errbacks('[{"parent": "<job>", "root": "<job>", "call": {"task": "shop.complain"}}]');
create or replace function pgqueue.enqueue_errbacks(p_calls json) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_call json;
begin
    if p_calls is null then
        return;
    end if;
    begin
        perform pgqueue.enqueue_followers((
                select json_agg(f.job)
                  from json_to_recordset(p_calls) as c (call json, parent uuid, root uuid)
                 cross join lateral pgqueue.follow(json_build_array(c.call), to_json(c.parent), c.parent, c.root) f (job)));
        return;
    exception when others then
        if sqlstate ~ '^(40|53|55|57|58)' then
            raise;  -- it passes: whoever acknowledges tries again
        elsif json_array_length(p_calls) = 1 then
            raise warning 'what was to follow the failure of job % cannot be enqueued: %',
                substring(p_calls::text from '[0-9a-f-]{36}'), sqlerrm using detail = left(p_calls::text, 1000);
            return;
        end if;
    end;
    for v_call in select e.call from json_array_elements(p_calls) e (call) loop
        perform pgqueue.enqueue_errbacks(json_build_array(v_call));
    end loop;
end
$$;
