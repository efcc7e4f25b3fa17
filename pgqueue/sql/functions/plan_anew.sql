-- A workflow with new ids, but for jobs whose ids their caller has chosen.
--   select pgqueue.plan_anew('[{"id": "<a>", "task": "shop.pack", "steps": ["<b>"]}, {"id": "<b>", "waits": 1}]');
create or replace function pgqueue.plan_anew(p_plan json) returns json
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        with row as materialized (
            select e.n, e.call, (e.call ->> 'id')::uuid as id,
                   case when e.call ->> 'chosen' = 'true' and e.call -> 'waits' is null then (e.call ->> 'id')::uuid
                        else pgqueue.new_id() end as anew
              from json_array_elements(p_plan) with ordinality as e (call, n)
        ), step as materialized (
            select r.n, json_agg(t.anew order by s.n) as steps
              from row r
             cross join lateral json_array_elements_text(
                   case json_typeof(r.call -> 'steps') when 'array' then r.call -> 'steps' end) with ordinality as s (id, n)
              join row t on t.id = s.id::uuid
             group by r.n
        )
        select json_agg(pgqueue.json_with(r.call, json_build_object('id', r.anew, 'steps', s.steps)) order by r.n)
          from row r left join step s on s.n = r.n);
end
$$;
