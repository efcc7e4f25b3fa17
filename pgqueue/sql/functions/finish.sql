-- Acknowledge attempts: the only way out of one. Each outcome is applied only where the job, the worker and the
-- attempt match, so a worker whose lease has passed on can change nothing. Returns the ids that were refused;
-- every other outcome is acknowledged when the transaction commits.
--   select pgqueue.finish('0192f5e2-0000-7000-8000-000000000001', '[{"id": "..", "attempt": 1, "state": "SUCCESS", "value": 5}]');
-- Keys of an outcome: id, attempt, state; value or error; runtime (seconds); keep = false stores no result.
--   SUCCESS FAILURE REVOKED REJECTED IGNORED end the job: its row is deleted and a result is inserted.
--   RETRY puts it back at eta or after countdown (seconds), with args, kwargs, queue, priority, expires if given;
--   retries: how many there had been before.
--   RELEASED puts it back untried after countdown; nothing is counted, unless crashed = true: a crash, with its error.
-- Lock order, here and everywhere: worker, then job, then result.
--
-- Idempotent: an outcome that this attempt has stored before counts as acknowledged, so a caller who lost the
-- connection during COMMIT asks again and learns what happened. Not so with keep = false, which leaves nothing to tell
-- from: then the second answer may be that it is refused. Nor where RETRY has met a revoke.
create or replace function pgqueue.finish(p_worker uuid, p_outcomes json)
returns setof uuid
language plpgsql volatile
-- As in claim: no plan may depend on the statistics of job, so job is reached by `= any(array(..))` alone, and
-- `is true` keeps the fence from being planned as a join. The worker's thread that acknowledges also beats: a row
-- that somebody keeps locked must not hold it up for long.
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set lock_timeout = '2s'
as $$
declare
    v_now timestamptz := pgqueue.clock();
    v_ended uuid[];
    v_refused uuid[];
    v_again record;
    v_eta timestamptz;
    v_revoked boolean;
    v_queue text;
    v_queues text[] := '{}';
begin
    if current_setting('synchronous_commit') in ('off', 'local') then
        perform set_config('synchronous_commit', 'on', true);
    end if;

    with outcome as materialized (
        select o.*
          from json_to_recordset(p_outcomes) as o (
               id uuid, attempt integer, state text, keep boolean, value json, error json, runtime real,
               eta timestamptz, countdown double precision, args json, kwargs json, queue text,
               priority smallint, expires timestamptz)
    ), ended as (
        delete from pgqueue.job j
         where j.id = any(array(select o.id from outcome o)) and j.worker = p_worker
           and case when j.revoked then ((j.id, j.attempt) in (select o.id, o.attempt from outcome o)) is true
                    else ((j.id, j.attempt) in (select o.id, o.attempt from outcome o
                                                 where o.state not in ('RETRY', 'RELEASED'))) is true end
        returning j.*
    ), stored as (
        insert into pgqueue.result as r (
               id, enqueued_at, claimed_at, finished_at, worker, root_id, parent_id, attempt, retries, crashes,
               runtime, priority, state, task, queue, args, kwargs, headers, value, error)
        select e.id, e.enqueued_at, e.claimed_at, v_now, p_worker, e.root_id, e.parent_id, e.attempt, e.retries,
               e.crashes, o.runtime, e.priority,
               case when o.state in ('RETRY', 'RELEASED') then 'REVOKED' else o.state end, e.task, e.queue, e.args,
               e.kwargs, e.headers, o.value, case when o.state <> 'SUCCESS' then coalesce(o.error, e.error) end
          from ended e
          join outcome o on o.id = e.id and o.attempt = e.attempt
         where o.keep is distinct from false
            on conflict (id) do update
           set enqueued_at = excluded.enqueued_at, claimed_at = excluded.claimed_at,
               finished_at = excluded.finished_at, worker = excluded.worker, root_id = excluded.root_id,
               parent_id = excluded.parent_id, attempt = excluded.attempt, retries = excluded.retries,
               crashes = excluded.crashes, runtime = excluded.runtime, priority = excluded.priority,
               state = excluded.state, task = excluded.task, queue = excluded.queue, args = excluded.args,
               kwargs = excluded.kwargs, headers = excluded.headers, value = excluded.value, error = excluded.error
         where r.state <> 'SUCCESS'  -- final, whatever came here to be run again
    )
    select (select array_agg(e.id) from ended e),
           (select array_agg(o.id) from outcome o where ((o.id, o.attempt) in (select e.id, e.attempt from ended e)) is not true)
      into v_ended, v_refused;

    if v_refused is not null then
        for v_again in
            select o.*
              from json_to_recordset(p_outcomes) as o (
                   id uuid, attempt integer, state text, error json, eta timestamptz, countdown double precision,
                   args json, kwargs json, queue text, priority smallint, expires timestamptz, crashed boolean)
             where o.id = any(v_refused) and o.state in ('RETRY', 'RELEASED')
             order by o.id
        loop
            v_eta := greatest(coalesce(v_again.eta, v_now + v_again.countdown * interval '1 second', v_now), v_now);
            update pgqueue.job j
               set worker = null, claimed_at = null, eta = v_eta,
                   retries = j.retries + (v_again.state = 'RETRY')::integer,
                   crashes = j.crashes + coalesce(v_again.crashed, false)::integer,
                   error = coalesce(v_again.error, j.error), args = coalesce(v_again.args, j.args),
                   kwargs = coalesce(v_again.kwargs, j.kwargs), queue = coalesce(v_again.queue, j.queue),
                   priority = coalesce(v_again.priority, j.priority), expires = coalesce(v_again.expires, j.expires)
             where j.id = v_again.id and j.worker = p_worker and j.attempt = v_again.attempt
            returning j.revoked, j.queue into v_revoked, v_queue;
            if found then
                if v_eta <= v_now then
                    v_queues := v_queues || v_queue;
                end if;
                v_refused := array_remove(v_refused, v_again.id);
                if v_revoked then  -- since the statement above looked
                    perform pgqueue.revoke(v_again.id);
                end if;
            end if;
        end loop;
        if cardinality(v_queues) > 0 then
            perform pgqueue.call_idle(v_queues);
        end if;
    end if;

    if v_ended is not null and exists (select from pgqueue.waiter) then
        perform pg_notify('pgqueue.done', w.job::text)
           from (select distinct w.job from pgqueue.waiter w where w.job = any(v_ended)) w;
    end if;

    -- What this attempt has stored before is not refused. bury leaves worker and attempt behind too, but a state or
    -- an error of its own.
    for v_again in
        select o.*
          from json_to_recordset(p_outcomes) as o (id uuid, attempt integer, state text, error json, retries integer)
         where o.id = any(v_refused)
    loop
        if not exists (
               select from pgqueue.result r
                where r.id = v_again.id and r.worker = p_worker and r.attempt = v_again.attempt
                  and r.state = case when v_again.state in ('RETRY', 'RELEASED') then 'REVOKED' else v_again.state end
                  and (r.state = 'SUCCESS' or v_again.error is null or r.error::text = v_again.error::text))
           and not exists (
               select from pgqueue.job j
                where j.id = v_again.id and j.worker is null and j.attempt = v_again.attempt
                  and (v_again.state = 'RELEASED'
                       -- bury changes everything else that a retry does
                       or v_again.state = 'RETRY' and j.retries = v_again.retries + 1))
        then
            return next v_again.id;
        end if;
    end loop;
end
$$;
