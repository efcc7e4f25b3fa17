-- Enqueue any number of calls of few kinds, which differ in their arguments alone; inside the caller's transaction. None
-- of them needs anything looked up: fresh ids, no unique key, no continuations. It is enqueue_many for that case, at
-- half its cost.
--   select pgqueue.enqueue_alike('[{"task": "shop.add"}]', null, array[pgqueue.new_id()], array['[2, 3]'::json], null);
-- p_kinds has elements as enqueue_many takes them, of which id, args and kwargs are not read. p_kind says for each call
-- which of them it is, from 1 on (NULL: all are the first); p_kwargs may be NULL where no call has any.
-- p_places says for each call which place it has among the members of the steps that wait for it (see enqueue_workflow).
-- An id that is there already raises unique_violation. p_durable asks for a synchronous commit whatever the session says.
create or replace function pgqueue.enqueue_alike(
    p_kinds json,
    p_kind integer[],
    p_ids uuid[],
    p_args json[],
    p_kwargs json[],
    p_durable boolean default false,
    p_places integer[] default null
) returns void
language plpgsql volatile
-- Compiled, up to PostgreSQL 17 where what is forced looks dear, it takes 1 s.
set jit = off set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_mergejoin = off set enable_nestloop = off
as $$
declare
    v_now timestamptz := pgqueue.clock();
    v_ticks boolean := nullif(current_setting('pgqueue_clock.now', true), '') is null;
    v_calls integer := cardinality(p_ids);
    v_stored integer;
begin
    if p_durable and current_setting('synchronous_commit') in ('off', 'local') then
        perform set_config('synchronous_commit', 'on', true);
    end if;
    if (cardinality(p_args), coalesce(cardinality(p_kwargs), v_calls), coalesce(cardinality(p_kind), v_calls),
        coalesce(cardinality(p_places), v_calls)) is distinct from (v_calls, v_calls, v_calls, v_calls) then
        raise exception 'p_ids, p_args, p_kwargs, p_kind and p_places have different lengths' using errcode = 'PQ002',
            hint = 'Give one element of each for every call.';
    end if;

    with kind as materialized (
        select k.n, k.task, coalesce(k.queue, 'default') as queue, coalesce(k.priority, 5::smallint) as priority,
               greatest(coalesce(k.eta, v_now + k.countdown * interval '1 second', v_now), v_now) as start,
               k.expires, k.expires_in * interval '1 second' as expires_in, k.headers, k.root_id, k.parent_id,
               k.ignore_result, k.time_limit, k.soft_time_limit, k.options, k.steps, coalesce(k.depth, 0::smallint) as depth
          from rows from (json_to_recordset(p_kinds) as (
               task text, queue text, priority smallint, eta timestamptz, countdown double precision,
               expires timestamptz, expires_in double precision, headers json, root_id uuid, parent_id uuid,
               ignore_result boolean, time_limit real, soft_time_limit real, options json, steps uuid[], depth smallint)
               ) with ordinality as k (
               task, queue, priority, eta, countdown, expires, expires_in, headers, root_id, parent_id, ignore_result,
               time_limit, soft_time_limit, options, steps, depth, n)
    ), called as materialized (
        -- One notification a queue, and only where a worker has said that it is idle.
        select count(pg_notify('pgqueue.work', q.queue))
          from (select distinct k.queue from kind k where k.start <= v_now) q
         where v_calls > 0
           and (select true from pgqueue.idle i where i.queue = q.queue and i.until > v_now limit 1)  -- as in enqueue_many
    )
    insert into pgqueue.job as j (
           id, task, args, kwargs, queue, priority, eta, enqueued_at, expires, headers, root_id, parent_id,
           ignore_result, time_limit, soft_time_limit, options, steps, depth, place)
    select c.id, c.task, c.args, coalesce(c.kwargs, '{}'), c.queue, c.priority,
           case when c.start = v_now then c.moment else c.start end, c.moment, coalesce(c.expires, c.moment + c.expires_in),
           c.headers, c.root_id, c.parent_id, c.ignore_result, c.time_limit, c.soft_time_limit, c.options,
           c.steps, c.depth, coalesce(c.place, 0)
      -- Each has a moment of its own, so that a cursor can stand between any two of a large call.
      from called, (
           select k.*, u.id, u.args, u.kwargs, u.place,
                  case when k.start = v_now and u.n > 1 and v_ticks then clock_timestamp() else v_now end as moment
             from unnest(p_ids, p_args, p_kwargs, p_kind, p_places) with ordinality
                  as u (id, args, kwargs, kind, place, n)
             join kind k on k.n = coalesce(u.kind, 1)
            order by u.n) c;
    get diagnostics v_stored = row_count;
    if v_stored <> v_calls then
        raise exception 'p_kind names a kind that is not in p_kinds' using errcode = 'PQ002',
            hint = 'The first element of p_kinds is 1.';
    end if;
end
$$;
