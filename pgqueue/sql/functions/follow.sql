-- The continuations of a job that has ended, as enqueue_followers takes them: each gets p_first as its first argument (the
-- value, or the id of what failed) unless it is immutable, and its place in the workflow. One whose id a job or a
-- result has already is not created again. An element with a `plan` is a workflow; this holds for the jobs in it then.
--   select pgqueue.follow('[{"task": "shop.mail", "args": ["ada"]}]', '5', '<job>', '<root>');
create or replace function pgqueue.follow(p_calls json, p_first json, p_parent uuid, p_root uuid) returns setof json
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select case when e.call -> 'plan' is null then pgqueue.followed(e.call, p_first, p_parent, p_root)
                else pgqueue.json_with(e.call, json_build_object('plan', (
                     select json_agg(case when r.call -> 'waits' is null then pgqueue.followed(r.call, p_first, p_parent, p_root)
                                          else pgqueue.json_with(r.call, json_build_object('root_id', p_root)) end order by r.n)
                       from json_array_elements(e.call -> 'plan') with ordinality as r (call, n)))) end
      from json_array_elements(p_calls) e (call);
end
$$;
