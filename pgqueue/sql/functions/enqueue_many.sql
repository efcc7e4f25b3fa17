-- Enqueue any number of jobs in one statement, inside the caller's transaction: a rollback leaves none.
--   select * from pgqueue.enqueue_many('[{"task": "shop.add", "args": [2, 3]}, {"task": "shop.add", "args": [4, 5]}]');
-- Keys of an element: task (the only one required), id, args, kwargs, queue, priority, eta, countdown (seconds),
-- expires, expires_in (seconds), unique_key, headers, root_id, parent_id, ignore_result, time_limit and
-- soft_time_limit (seconds), and known = true if the id was chosen by the caller and may be there already; resent = true
-- if the same was sent before and the answer got lost: then a job or any result with this id is what was created.
-- links and errbacks are arrays of such elements, which may have some of their own: the jobs to be enqueued when this one
-- succeeds, or when it fails. They are given its value, or its id, as their first argument, unless immutable = true.
-- steps, place, depth: see enqueue_workflow. attempt: how often a job with this id was claimed before; 0.
-- options is an object that is kept for the client. (checked = true: links and errbacks have been checked before.)
-- Answers in the order given: the id, and whether it was created; if not, it is that of the unfinished job with this
-- unique_key, or of the job or result with this id.
-- p_durable asks for a synchronous commit whatever the session says (for callers who own the transaction).
create or replace function pgqueue.enqueue_many(p_jobs json, p_durable boolean default false)
returns table (id uuid, created boolean)
language plpgsql volatile
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    v_now timestamptz := pgqueue.clock();
    v_ticks boolean := nullif(current_setting('pgqueue_clock.now', true), '') is null;
    v_ids uuid[];
    v_keys text[];
    v_known uuid[];
    v_resent uuid[];
    v_new uuid[];
    v_found uuid;
begin
    if p_durable and current_setting('synchronous_commit') in ('off', 'local') then
        perform set_config('synchronous_commit', 'on', true);
    end if;

    with given as materialized (
        select coalesce(g.id, pgqueue.new_id()) as job_id, coalesce(g.queue, 'default') as line,
               greatest(coalesce(g.eta, v_now + g.countdown * interval '1 second', v_now), v_now) as start, g.*
          from rows from (json_to_recordset(p_jobs) as (
               id uuid, task text, args json, kwargs json, queue text, priority smallint, eta timestamptz,
               countdown double precision, expires timestamptz, expires_in double precision, unique_key text,
               headers json, root_id uuid, parent_id uuid, ignore_result boolean, known boolean, time_limit real,
               soft_time_limit real, resent boolean, links json, errbacks json, options json, checked boolean,
               steps uuid[], place integer, depth smallint, attempt integer)
               ) with ordinality as g (
               id, task, args, kwargs, queue, priority, eta, countdown, expires, expires_in, unique_key,
               headers, root_id, parent_id, ignore_result, known, time_limit, soft_time_limit, resent, links, errbacks,
               options, checked, steps, place, depth, attempt, n)
    ), inserted as (
        insert into pgqueue.job as j (
               id, task, args, kwargs, queue, priority, eta, enqueued_at, expires, unique_key,
               headers, root_id, parent_id, ignore_result, time_limit, soft_time_limit, links, errbacks, options,
               steps, place, depth, attempt)
        select g.job_id, g.task, coalesce(g.args, '[]'), coalesce(g.kwargs, '{}'), g.line,
               coalesce(g.priority, 5::smallint), case when g.start = v_now then g.moment else g.start end, g.moment,
               coalesce(g.expires, g.moment + g.expires_in * interval '1 second'), g.unique_key,
               g.headers, g.root_id, g.parent_id, g.ignore_result, g.time_limit, g.soft_time_limit,
               case when g.links is null or g.checked then g.links else pgqueue.check_calls(g.links, 'links') end,
               case when g.errbacks is null or g.checked then g.errbacks
                    else pgqueue.check_calls(g.errbacks, 'errbacks') end, g.options,
               g.steps, coalesce(g.place, 0), coalesce(g.depth, 0::smallint), coalesce(g.attempt, 0)
          -- Each has a moment of its own, so that a cursor can stand between any two of a large call.
          from (select *, case when start = v_now and n > 1 and v_ticks then clock_timestamp() else v_now end as moment
                  from given) g
         -- Two transactions that insert the same keys, or the same known ids, in one order cannot deadlock.
         order by g.unique_key, case when g.known then g.job_id end, g.n
            on conflict do nothing
        returning j.id
    ), called as (
        -- One notification a queue, and only where a worker has said that it is idle.
        select count(pg_notify('pgqueue.work', q.line))
          from (select distinct g.line from given g where g.start <= v_now) q
         -- Not `exists`, which may become a join that walks over all that was ever said.
         where (select true from pgqueue.idle i where i.queue = q.line and i.until > v_now limit 1)
    )
    select (select array_agg(g.job_id order by g.n) from given g),
           (select array_agg(g.unique_key order by g.n) from given g),
           (select array_agg(g.job_id) from given g where g.known),
           (select coalesce(array_agg(g.job_id) filter (where g.resent), '{}') from given g),
           (select coalesce(array_agg(i.id), '{}') from inserted i)
      into v_ids, v_keys, v_known, v_resent, v_new
      from called;

    if v_known is not null and cardinality(v_new) > 0 then
        -- An id that has succeeded is not run again. Insert first, look afterwards: a transaction that was just
        -- acknowledging it made the insert wait for the key, and only a second statement sees what it committed.
        -- Each id by itself, with one array and no join: joined with result, or with several arrays for one column, the
        -- plan tries every pair of ids when the tables were last seen empty, or on PostgreSQL 16 and before.
        select array_agg(r.id) into v_known from pgqueue.result r where r.id = any(v_known);
        v_known := array(select unnest(v_known) intersect select unnest(v_new));
    end if;
    if cardinality(v_known) > 0 then
        -- A second life goes on counting, so that a worker left over from the first has no valid fence.
        update pgqueue.job j
           set attempt = greatest((select r.attempt from pgqueue.result r where r.id = j.id), j.attempt)
         where j.id = any(v_known);
        with repeated as (
            delete from pgqueue.job j
             where j.id = any(array(select r.id from pgqueue.result r
                                     where r.id = any(v_known) and (r.state = 'SUCCESS' or r.id = any(v_resent))))
            returning j.id
        )
        select array(select unnest(v_new) except select r.id from repeated r) into v_new;
    end if;

    if cardinality(v_new) = cardinality(v_ids) then
        return query select u.id, true from unnest(v_ids) u (id);
        return;
    end if;

    for i in 1 .. coalesce(cardinality(v_ids), 0) loop
        id := v_ids[i];
        created := v_ids[i] = any(v_new);
        if created then
            v_new := array_remove(v_new, v_ids[i]);  -- an id given twice was created once
        else
            select j.id into v_found from pgqueue.job j where j.unique_key = v_keys[i];
            if not found then
                select j.id into v_found from pgqueue.job j where j.id = v_ids[i];
            end if;
            if not found then
                select r.id into v_found from pgqueue.result r
                 where r.id = v_ids[i] and (r.state = 'SUCCESS' or r.id = any(v_resent));
            end if;
            if found then
                id := v_found;
                created := v_found = v_ids[i] and v_found = any(v_resent);
            else
                -- The job that stood in the way has ended since: there is room now.
                select e.id, e.created into id, created
                  from pgqueue.enqueue_many(json_build_array(p_jobs -> (i - 1))) e;
            end if;
        end if;
        return next;
    end loop;
end
$$;
