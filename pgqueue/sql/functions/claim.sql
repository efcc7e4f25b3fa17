-- Lease up to p_limit waiting jobs to a worker, and return them in the order in which they are to run.
--   select id, task, args, kwargs from pgqueue.claim('0192f5e2-0000-7000-8000-000000000001', '{mail,default}', 10);
-- Queues are served in the order given, in each the higher priority first, then the earlier eta.
-- p_exclude names tasks that the worker has met and does not know: they are left to others, where they stand.
--
-- p_relaxed commits asynchronously: a claim lost in a crash of the server is only a redelivery. Never set it where
-- the claim is the acknowledgement (acks_late=False), or in a transaction that acknowledges other jobs.
--
-- A job whose worker has died is a suspect: it may have killed it. So that it takes no other with it, it is claimed
-- alone, by a caller who says p_alone: he holds nothing, runs what he gets by itself, and claims nothing beside it. He
-- is given one suspect if there is one, else what anybody gets. Without p_alone suspects are left where they stand.
--
-- An id that has succeeded (its row came here by other ways than enqueue) is marked `succeeded`: not to be run, but
-- finished with keep = false.
--
-- p_after holds the cursors of the caller: for each queue in turn the earliest eta to look at, for the priorities from 9
-- down to 0. NULL: from the very start. Whoever holds an old snapshot keeps the index entries of finished jobs alive,
-- and a claim from the start walks all of them: after 150,000 jobs 3,900 a second were left of 27,400. A cursor is a
-- hint: what stands below it is found by look_back, within a second or so.
--
-- Each queue and each of the ten priorities is probed for itself, with one index range scan: an ordered scan
-- over `queue = any(..)` sorts the whole backlog, and one across priorities walks every future job of a higher
-- one (15 ms against 0.08 ms beside 200,000 future jobs).
--
-- Under READ COMMITTED the row that FOR UPDATE locks is checked again in its newest version, so a job that
-- another worker took between the look and the lock is left out; the UPDATE repeats the check. It goes by ctid, and so
-- looks nothing up again; a job whose row was changed between look and lock is left to the next claim.
create or replace function pgqueue.claim(
    p_worker uuid, p_queues text[], p_limit integer, p_exclude text[] default '{}', p_relaxed boolean default false,
    p_alone boolean default false, p_after timestamptz[] default null
) returns table (
    id uuid, task text, queue text, priority smallint, args json, kwargs json, attempt integer, retries integer,
    crashes integer, eta timestamptz, enqueued_at timestamptz, expires timestamptz, expired boolean,
    revoked boolean, headers json, root_id uuid, parent_id uuid, ignore_result boolean, succeeded boolean,
    time_limit real, soft_time_limit real, links json, errbacks json, options json, requeues smallint
)
language plpgsql volatile
-- Statistics of a queue are wrong most of the time: it is empty when they are taken and full when it matters. So
-- no plan may depend on them; `= any(array(..))` for the same reason: a join by id is planned as a walk over the
-- whole primary key when the table was last seen empty (29 ms a claim).
-- Compiled, up to PostgreSQL 17 where what is forced looks dear, it takes 100 ms.
set jit = off set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set lock_timeout = '2s' set enable_seqscan = off set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    v_now timestamptz := pgqueue.clock();
    v_suspect tid;
begin
    if p_relaxed then
        perform set_config('synchronous_commit', 'off', true);
    end if;
    if p_alone then
        select j.ctid into v_suspect
          from pgqueue.job j
         where j.crashes > 0 and j.eta <= v_now and j.worker is null
           -- An expression, so that no plan walks the whole line for it: only job_suspect is left.
           and j.queue || '' = any(p_queues) and j.task <> all(p_exclude)
         order by j.eta  -- as the index has them: after a power failure there may be many
         limit 1
           for update skip locked;
    end if;
    return query
    with probe as materialized (
        select q.name, q.n, level, coalesce(p_after[(q.n - 1) * 10 + 10 - level], '-infinity') as after
          from unnest(p_queues) with ordinality as q (name, n) cross join generate_series(9, 0, -1) as level
         where v_suspect is null
         order by q.n, level desc
    ), candidate as materialized (
        select waiting.place
          from probe
         cross join lateral (
               select j.ctid as place
                 from pgqueue.job j
                where j.queue = probe.name and j.priority = probe.level
                  and j.eta >= probe.after and j.eta <= v_now
                  and j.worker is null and j.crashes = 0 and j.task <> all(p_exclude)
                order by j.eta
                limit p_limit
                  for update skip locked
               ) waiting
         limit p_limit
    ), claimed as (
        update pgqueue.job j
           set worker = p_worker, attempt = j.attempt + 1, claimed_at = v_now
         where j.ctid = any(array(select c.place from candidate c union all select v_suspect)) and j.worker is null
        returning j.id, j.task, j.queue, j.priority, j.args, j.kwargs, j.attempt, j.retries, j.crashes, j.eta, j.enqueued_at,
                  j.expires, j.revoked, j.headers, j.root_id, j.parent_id, j.ignore_result, j.time_limit, j.soft_time_limit,
                  j.links, j.errbacks, j.options, j.requeues
    ), success as materialized (
        select r.id from pgqueue.result r where r.id = any(array(select c.id from claimed c)) and r.state = 'SUCCESS'
    )
    select c.id, c.task, c.queue, c.priority, c.args, c.kwargs, c.attempt, c.retries, c.crashes, c.eta,
           c.enqueued_at, c.expires, coalesce(c.expires <= v_now, false), c.revoked, c.headers, c.root_id, c.parent_id,
           c.ignore_result, c.id in (select s.id from success s), c.time_limit, c.soft_time_limit,
           c.links, c.errbacks, c.options, c.requeues
      from claimed c
     order by array_position(p_queues, c.queue), c.priority desc, c.eta, c.id;
end
$$;
