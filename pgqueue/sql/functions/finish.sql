-- Acknowledge attempts: the only way out of one. Each outcome is applied only where the job, the worker and the
-- attempt match, so a worker whose lease has passed on can change nothing. Returns the ids that were refused;
-- every other outcome is acknowledged when the transaction commits.
--   select pgqueue.finish('0192f5e2-0000-7000-8000-000000000001', '[{"id": "..", "attempt": 1, "state": "SUCCESS", "value": 5}]');
-- Keys of an outcome: id, attempt, state; value or error; runtime (seconds); keep = false stores no result.
--   SUCCESS FAILURE REVOKED REJECTED IGNORED end the job: its row is deleted and a result is inserted, and it is counted
--   in the steps that wait for it. SUCCESS enqueues
--   its links, FAILURE and REJECTED its errbacks, which read the result, so keep = false is not heard where there are any.
--   FAILURE with hooks = true: somebody else than the task's own process found it; a job that runs its hooks is enqueued,
--   if the worker has said that it has any.
--   RETRY puts it back at eta or after countdown (seconds), with args, kwargs, queue, priority, expires, headers, options,
--   ignore_result, time_limit, soft_time_limit if given; retries: how many there had been before.
--   RELEASED puts it back untried after countdown; nothing is counted, unless crashed = true: a crash, with its error.
--   REQUEUE puts it back to be tried again, at once the first time and then after ever longer, a minute at most. After
--   `most` times (100) it ends as REJECTED. requeues: how many there had been before.
--   REPLACED puts another call in its place, under its id: task, args, kwargs, and what RETRY takes, where queue and
--   priority stay if they are not given. links and errbacks are added to those that it has.
-- Lock order, here and everywhere: worker, then job, then result.
--
-- Idempotent: an outcome that this attempt has stored before counts as acknowledged, so a caller who lost the
-- connection during COMMIT asks again and learns what happened. Not so with keep = false, which leaves nothing to tell
-- from: then the second answer may be that it is refused. Nor where RETRY, REQUEUE or REPLACED has met a revoke. And a call
-- that was REPLACED by one with the same task, args, kwargs and options cannot be told from one that bury has put back:
-- then the second answer may be that it is acknowledged.
create or replace function pgqueue.finish(p_worker uuid, p_outcomes json)
returns setof uuid
language plpgsql volatile
-- As in claim: no plan may depend on the statistics of job, so job is reached by `= any(array(..))` alone, and
-- `is true` keeps the fence from being planned as a join. The worker's thread that acknowledges also beats: a row
-- that somebody keeps locked must not hold it up for long.
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set lock_timeout = '2s'
as $$
declare
    v_now timestamptz := pgqueue.clock();
    v_hooks boolean := strpos(p_outcomes::text, '"hooks"') > 0;  -- at least it may be there
    v_ended uuid[];
    v_back uuid[] := '{}';
    v_followed pgqueue.job[];
    v_parts pgqueue.part[];
    v_refused uuid[];
    v_again record;
    v_job pgqueue.job;
    v_queues text[] := '{}';
begin
    if current_setting('synchronous_commit') in ('off', 'local') then
        perform set_config('synchronous_commit', 'on', true);
    end if;

    with outcome as materialized (
        select o.*
          from json_to_recordset(p_outcomes) as o (
               id uuid, attempt integer, state text, keep boolean, value json, error json, runtime real)
    ), ended as (
        delete from pgqueue.job j
         where j.id = any(array(select o.id from outcome o)) and j.worker = p_worker
           and case when j.revoked then ((j.id, j.attempt) in (select o.id, o.attempt from outcome o)) is true
                    else ((j.id, j.attempt) in (select o.id, o.attempt from outcome o
                                                 where o.state not in ('RETRY', 'RELEASED', 'REQUEUE', 'REPLACED'))) is true end
        returning j.id, j.enqueued_at, j.claimed_at, j.root_id, j.parent_id, j.attempt, j.retries, j.crashes, j.priority,
                  j.task, j.queue, j.args, j.kwargs, j.headers, j.options, j.history, j.error, j.errbacks, j.steps,
                  j.place, j.depth,
                  case when j.links is not null or j.errbacks is not null or v_hooks
                            or j.root_id is not null and j.id in (select o.id from outcome o where o.state <> 'SUCCESS')
                       then j end as followed
    ), stored as (
        insert into pgqueue.result as r (
               id, enqueued_at, claimed_at, finished_at, worker, root_id, parent_id, attempt, retries, crashes,
               runtime, priority, state, task, queue, args, kwargs, headers, options, history, steps, value, error)
        select e.id, e.enqueued_at, e.claimed_at, v_now, p_worker, e.root_id, e.parent_id, e.attempt, e.retries,
               e.crashes, o.runtime, e.priority,
               case when o.state in ('RETRY', 'RELEASED', 'REQUEUE', 'REPLACED') then 'REVOKED' else o.state end, e.task,
               e.queue, e.args, e.kwargs, e.headers, e.options, e.history, e.steps, o.value,
               case when o.state <> 'SUCCESS' then coalesce(o.error, e.error) end
          from ended e
          join outcome o on o.id = e.id and o.attempt = e.attempt
         where (o.keep is distinct from false or e.errbacks is not null and o.state in ('FAILURE', 'REJECTED'))
            on conflict (id) do update
           set enqueued_at = excluded.enqueued_at, claimed_at = excluded.claimed_at,
               finished_at = excluded.finished_at, worker = excluded.worker, root_id = excluded.root_id,
               parent_id = excluded.parent_id, attempt = excluded.attempt, retries = excluded.retries,
               crashes = excluded.crashes, runtime = excluded.runtime, priority = excluded.priority,
               state = excluded.state, task = excluded.task, queue = excluded.queue, args = excluded.args,
               kwargs = excluded.kwargs, headers = excluded.headers, options = excluded.options,
               history = excluded.history, steps = excluded.steps, value = excluded.value, error = excluded.error
         where r.state <> 'SUCCESS'  -- final, whatever came here to be run again
    )
    select (select array_agg(e.id) from ended e),
           (select array_agg(e.followed) from ended e where (e.followed).id is not null),
           (select array_agg(row(s.step, e.place, e.id, e.state, case when e.state not in ('SUCCESS', 'IGNORED') then e.id end,
                                 e.depth, e.value, case when e.state <> 'SUCCESS' then e.error end)::pgqueue.part)
              from (select e.id, e.steps, e.place, e.depth, coalesce(o.error, e.error) as error,
                           coalesce(r.value, o.value) as value,
                           case when o.state in ('RETRY', 'RELEASED', 'REQUEUE', 'REPLACED') then 'REVOKED'
                                when r.id is not null then 'SUCCESS' else o.state end as state
                      from ended e join outcome o on o.id = e.id and o.attempt = e.attempt
                      -- Not run, as it had succeeded before: see claim.
                      left join lateral (select r.id, r.value from pgqueue.result r
                                          where o.state = 'IGNORED' and o.keep is false and r.id = e.id and r.state = 'SUCCESS'
                                          limit 1) r on true
                     where e.steps is not null) e
             cross join lateral unnest(e.steps) s (step)),
           (select array_agg(o.id) from outcome o where ((o.id, o.attempt) in (select e.id, e.attempt from ended e)) is not true)
      into v_ended, v_followed, v_parts, v_refused;

    if v_followed is not null then
        perform pgqueue.enqueue_continuations(v_followed, p_outcomes);
    end if;
    if v_parts is not null then
        perform pgqueue.count_in(v_parts);
    end if;

    if v_refused is not null then
        for v_again in
            select o.*, e.outcome
              from json_array_elements(p_outcomes) e (outcome)
             cross join lateral json_to_record(e.outcome) as o (id uuid, attempt integer, state text)
             where o.id = any(v_refused) and o.state in ('RETRY', 'RELEASED', 'REQUEUE', 'REPLACED')
             order by o.id
        loop
            v_job := pgqueue.put_back(p_worker, v_again.outcome, v_now);
            if v_job.id is not null then
                v_back := v_back || v_again.id;
                v_refused := array_remove(v_refused, v_again.id);
                if v_job.eta <= v_now then
                    v_queues := v_queues || v_job.queue;
                end if;
                if v_job.revoked then  -- since the statement above looked
                    perform pgqueue.revoke(v_again.id);
                end if;
            elsif v_again.state = 'REQUEUE' then  -- too often, or refused; of a key that stands twice the last one counts
                perform from pgqueue.finish(p_worker, ('[' || left(v_again.outcome::text, -1) || ',"state":"REJECTED"}]')::json);
                if not found then
                    v_refused := array_remove(v_refused, v_again.id);
                end if;
            end if;
        end loop;
        if cardinality(v_queues) > 0 then
            perform pgqueue.call_idle(v_queues);
        end if;
    end if;

    -- By the jobs of this call: whether anything is in these tables at all is a walk over all that has been deleted
    -- from them while somebody holds an old snapshot (33 ms beside 90,000 dead rows, against 0.1).
    if exists (select from pgqueue.progress p where p.job = any(v_ended || v_back)) then
        perform pgqueue.end_progress(v_ended || v_back);
    end if;
    perform pg_notify('pgqueue.done', w.job::text)
       from (select distinct w.job from pgqueue.waiter w where w.job = any(v_ended)) w;

    -- What this attempt has stored before is not refused. bury leaves worker and attempt behind too, but a state or
    -- an error of its own.
    if v_refused is null then
        return;
    end if;
    for v_again in
        select o.*
          from json_to_recordset(p_outcomes) as o (
               id uuid, attempt integer, state text, error json, retries integer, requeues integer, task text, args json,
               kwargs json, options json)
         where o.id = any(v_refused)
    loop
        if not exists (
               select from pgqueue.result r
                where r.id = v_again.id and r.worker = p_worker and r.attempt = v_again.attempt
                  and r.state = case when v_again.state in ('RETRY', 'RELEASED', 'REQUEUE', 'REPLACED') then 'REVOKED'
                                     else v_again.state end
                  and (r.state = 'SUCCESS' or v_again.error is null or r.error::text = v_again.error::text))
           and not exists (
               select from pgqueue.job j
                where j.id = v_again.id and j.worker is null and j.attempt = v_again.attempt
                  and case v_again.state  -- bury changes everything else that these do
                      when 'RELEASED' then true
                      when 'RETRY' then j.retries = v_again.retries + 1
                      when 'REQUEUE' then j.requeues = least(v_again.requeues + 1, 32767)
                      when 'REPLACED' then j.task = v_again.task and j.args::text = coalesce(v_again.args::text, '[]')
                           and j.kwargs::text = coalesce(v_again.kwargs::text, '{}')
                           and j.options::text is not distinct from v_again.options::text
                      end)
           and not exists (select from pgqueue.step s where s.id = v_again.id and v_again.state = 'REPLACED')
        then
            return next v_again.id;
        end if;
    end loop;
end
$$;
