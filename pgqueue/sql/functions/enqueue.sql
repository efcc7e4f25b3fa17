-- Enqueue one call of a task from psql, a trigger or any other language, inside your transaction.
--   select pgqueue.enqueue('shop.add', '[2, 3]');
--   select pgqueue.enqueue('shop.mail', p_kwargs => '{"to": "ada"}', p_queue => 'mail', p_countdown => '10 minutes');
-- Answers the id of the job; with p_unique_key, that of the unfinished job which has the key already.
create or replace function pgqueue.enqueue(
    p_task text,
    p_args jsonb default '[]',
    p_kwargs jsonb default '{}',
    p_queue text default 'default',
    p_priority integer default 5,
    p_eta timestamptz default null,
    p_countdown interval default null,
    p_expires timestamptz default null,
    p_id uuid default null,
    p_unique_key text default null,
    p_headers jsonb default null
) returns uuid
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_id uuid;
begin
    if p_task is null or p_task = '' then
        raise exception 'p_task is empty' using errcode = 'PQ002', hint = 'Give the name of a task, such as shop.add.';
    elsif jsonb_typeof(p_args) is distinct from 'array' then
        raise exception 'p_args must be a JSON array, not %', coalesce(jsonb_typeof(p_args), 'NULL')
            using errcode = 'PQ002', hint = 'Positional arguments: ''[2, 3]''. Named ones go into p_kwargs.';
    elsif jsonb_typeof(p_kwargs) is distinct from 'object' then
        raise exception 'p_kwargs must be a JSON object, not %', coalesce(jsonb_typeof(p_kwargs), 'NULL')
            using errcode = 'PQ002', hint = 'Named arguments: ''{"to": "ada"}''.';
    elsif p_priority is null or p_priority not between 0 and 9 then
        raise exception 'p_priority must be 0 to 9, not %', coalesce(p_priority::text, 'NULL')
            using errcode = 'PQ002', hint = '9 runs first; the default is 5.';
    end if;
    select e.id into v_id
      from pgqueue.enqueue_many(json_build_array(json_build_object(
               'id', coalesce(p_id, pgqueue.new_id()), 'known', p_id is not null,
               'task', p_task, 'args', p_args, 'kwargs', p_kwargs, 'queue', p_queue, 'priority', p_priority,
               'eta', coalesce(p_eta, pgqueue.clock() + p_countdown), 'expires', p_expires,
               'unique_key', p_unique_key, 'headers', p_headers))) e;
    return v_id;
end
$$;
