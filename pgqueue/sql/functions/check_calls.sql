-- Answer what is given as `links` or `errbacks` of a job if all of it can be enqueued some day, however deep one stands
-- in another; else raise PQ002 with the place and the cure: what is found out only when the job ends is found too late.
--   select pgqueue.check_calls('[{"task": "shop.mail", "args": ["ada"]}]', 'links');
create or replace function pgqueue.check_calls(p_calls json, p_name text) returns json
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
    v_place text;
    v_wrong text;
    v_far bigint;
begin
    -- As jsonb, which is parsed once: a chain of 300 is 300 levels deep (json: 0.6 s).
    with recursive item as (
        select p_name as place, p_calls::jsonb as item, true as is_list, true as has_task
         union all
        select inside.*
          from item i
         cross join lateral (
               select format('%s[%s]', i.place, e.n - 1), e.call, false, i.has_task
                 from jsonb_array_elements(case when i.is_list and jsonb_typeof(i.item) = 'array' then i.item end)
                      with ordinality as e (call, n)
                union all
               select format('%s.%s', i.place, k.name), i.item -> k.name, true, k.name <> 'plan'
                 from (values ('links'), ('errbacks'), ('plan')) k (name)
                where not i.is_list and jsonb_typeof(i.item) = 'object' and jsonb_typeof(i.item -> k.name) <> 'null'
               ) inside
    )
    select w.place, w.wrong into v_place, v_wrong
      from (select i.place,
                   case when i.is_list then
                             case when jsonb_typeof(i.item) <> 'array'
                                  then 'must be a JSON array, not ' || jsonb_typeof(i.item) end
                        when jsonb_typeof(i.item) <> 'object' then 'must be a JSON object, not ' || jsonb_typeof(i.item)
                        when (i.has_task and i.item -> 'plan' is null or i.item ->> 'task' is not null)
                             and coalesce(length(i.item ->> 'task'), 0) not between 1 and 255
                             then 'has no task of 1 to 255 characters'
                        when jsonb_typeof(i.item -> 'args') not in ('array', 'null') then 'has args that are not a JSON array'
                        when jsonb_typeof(i.item -> 'kwargs') not in ('object', 'null')
                             then 'has kwargs that are not a JSON object'
                        when length(i.item ->> 'queue') not between 1 and 100
                             then 'has a queue that is not of 1 to 100 characters'
                        when length(i.item ->> 'unique_key') not between 1 and 500
                             then 'has a unique_key that is not of 1 to 500 characters'
                        when i.item ->> 'priority' !~ '^[0-9]$' then 'has a priority that is not 0 to 9'
                        when i.item ->> 'id' !~* '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
                             then 'has an id that is not a UUID'
                        when not i.has_task and i.item ->> 'id' is null then 'is part of a workflow and has no id'
                        when not i.has_task and i.item ->> 'task' is null and i.item -> 'waits' is null
                             then 'is part of a workflow, and neither has a task nor waits'
                        when i.item ->> 'waits' !~ '^[1-9][0-9]{0,8}$' then 'waits for what is no number of others'
                        when i.item -> 'waits' is not null
                             and coalesce(i.item ->> 'takes', '') not in ('nothing', 'value', 'values')
                             then 'waits, and takes something else than nothing, value or values'
                        when i.item ->> 'place' !~ '^[0-9]{1,9}$' or i.item ->> 'depth' !~ '^[0-9]{1,4}$'
                             then 'has a place or a depth that is no number'
                        when jsonb_typeof(i.item -> 'steps') not in ('array', 'null')
                             or (i.item -> 'steps')::text !~* '^(null|\[("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"(, )?)*\])$'
                             then 'has steps that are no array of UUIDs'
                        end as wrong
              from item i
           ) w
     where w.wrong is not null
     limit 1;
    if found then
        raise exception '% %', v_place, v_wrong using errcode = 'PQ002',
            hint = 'Give an array of jobs as enqueue_many takes them: [{"task": "shop.mail", "args": ["ada"]}].';
    end if;
    -- What cannot be read as enqueue_many will read it is better found out now.
    if p_calls::text ~ '"(eta|countdown|expires|expires_in|time_limit|soft_time_limit|ignore_result)"' then
        begin
            with recursive item (item) as (
                select e.call from jsonb_array_elements(p_calls::jsonb) e (call)
                 union all
                select e.call from item i
                 cross join lateral (values ('links'), ('errbacks'), ('plan')) k (name)
                 cross join lateral jsonb_array_elements(
                       case jsonb_typeof(i.item -> k.name) when 'array' then i.item -> k.name end) e (call)
            )
            select count(*) filter (where greatest(g.countdown, g.expires_in) > 3.2e9) into v_far
              from item i
             cross join lateral jsonb_to_record(i.item) as g (
                   eta timestamptz, countdown double precision, expires timestamptz, expires_in double precision,
                   ignore_result boolean, time_limit real, soft_time_limit real);
        exception when data_exception then
            raise exception '% cannot be read: %', p_name, sqlerrm using errcode = 'PQ002',
                hint = 'Give an array of jobs as enqueue_many takes them: [{"task": "shop.mail", "args": ["ada"]}].';
        end;
        if v_far > 0 then
            raise exception '% has a countdown or expires_in of more than a hundred years', p_name using errcode = 'PQ002',
                hint = 'Give seconds, and else what enqueue_many takes.';
        end if;
    end if;
    return p_calls;
end
$$;
