-- Enqueue what follow has answered: single calls, and workflows.
--   select pgqueue.enqueue_followers('[{"id": "<job>", "task": "shop.mail", "args": [5, "ada"]}]');
create or replace function pgqueue.enqueue_followers(p_calls json) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    if p_calls::text not like '%"plan"%' then  -- nearly always
        perform from pgqueue.enqueue_many(p_calls);
        return;
    end if;
    perform from pgqueue.enqueue_many((
            select coalesce(json_agg(e.call order by e.n), '[]') from json_array_elements(p_calls) with ordinality as e (call, n)
             where e.call -> 'plan' is null));
    perform pgqueue.enqueue_following(e.call)
       from json_array_elements(p_calls) with ordinality as e (call, n)
      where e.call -> 'plan' is not null;
end
$$;
