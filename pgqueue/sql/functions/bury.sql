-- Take back the leases of a worker that is dead, and strike it off the list. Answers what became of each job:
--   PENDING   it waits again. A crash is counted if it had been started.
--   FAILURE   it had been started and may not be again: acks_late=False, reject_on_worker_lost=False, or it has been
--             repeated after p_max_crashes crashes.
--   REVOKED   it was revoked while it ran.
-- Of what ends as FAILURE the errbacks are enqueued, and a job that runs its hooks if the worker had said that it has any.
-- p_started names the jobs whose attempt had begun, p_attempts the number of each; NULL: not known, so all may have. p_error tells how the worker
-- died; p_counts = false says that it was stopped, which is no crash. Jobs that a transactional task holds at this moment
-- are passed over and found by the next call.
--   select * from pgqueue.bury('<worker>', '{"type": "WorkerLostError", "module": "pgqueue.errors", "message": "SIGKILL"}');
create or replace function pgqueue.bury(
    p_worker uuid, p_error json, p_started uuid[] default null, p_max_crashes integer default 3,
    p_counts boolean default true, p_attempts integer[] default null
) returns table (id uuid, task text, state text)
language plpgsql volatile set search_path = pg_catalog, pg_temp set lock_timeout = '2s'
as $$
#variable_conflict use_column
declare
    v_now timestamptz := pgqueue.clock();
    v_once text[];
    v_fail text[];
    v_hooked text[];
begin
    if current_setting('synchronous_commit') in ('off', 'local') then
        perform set_config('synchronous_commit', 'on', true);
    end if;
    select w.at_most_once, w.fail_if_lost, w.hooked into v_once, v_fail, v_hooked
      from pgqueue.worker w where w.id = p_worker for update;
    if not found then  -- see orphans: what other workers say of their tasks is the best that is known
        select array_agg(distinct o.task), array_agg(distinct f.task), array_agg(distinct h.task)
          into v_once, v_fail, v_hooked
          from pgqueue.worker w
          left join lateral unnest(w.at_most_once) o (task) on true
          left join lateral unnest(w.fail_if_lost) f (task) on true
          left join lateral unnest(w.hooked) h (task) on true;
    end if;

    return query
    with held as materialized (
        select j.id, j.task, j.queue, j.crashes, j.revoked, p_started is null or case when p_attempts is null then j.id = any(p_started)
                    else (j.id, j.attempt) in (select * from unnest(p_started, p_attempts)) end as started
          from pgqueue.job j
         where j.worker = p_worker
         order by j.id
           for update skip locked
    ), verdict as materialized (
        select h.*,
               case when h.revoked then 'REVOKED'
                    when h.started and (h.task = any(coalesce(v_once, '{}'))
                                         or p_counts and (h.crashes >= p_max_crashes
                                                          or h.task = any(coalesce(v_fail, '{}')))) then 'FAILURE'
                    else 'PENDING' end as state
          from held h
    ), back as (
        update pgqueue.job j
           set worker = null, claimed_at = null, eta = greatest(j.eta, v_now),
               crashes = j.crashes + (v.started and p_counts)::integer,
               error = case when v.started and p_counts then p_error else j.error end,
               history = case when v.started and p_counts
                              then pgqueue.remember(j.history, j.attempt, v_now, 'CRASH', p_error) else j.history end
          from verdict v
         where v.state = 'PENDING' and j.id = v.id and j.id = any(array(select h.id from held h))
    ), ended as (
        delete from pgqueue.job j using verdict v
         where v.state <> 'PENDING' and j.id = v.id and j.id = any(array(select h.id from held h))
        returning j.*, v.state as state, v.started as started, j as job
    ), stored as (
        insert into pgqueue.result as r (
               id, enqueued_at, claimed_at, finished_at, worker, root_id, parent_id, attempt, retries, crashes,
               priority, state, task, queue, args, kwargs, headers, options, history, steps, error)
        select e.id, e.enqueued_at, e.claimed_at, v_now, p_worker, e.root_id, e.parent_id, e.attempt, e.retries,
               e.crashes + (e.started and p_counts)::integer, e.priority, e.state, e.task, e.queue, e.args, e.kwargs, e.headers,
               e.options, e.history, e.steps, p_error
          from ended e
            on conflict (id) do update
           set enqueued_at = excluded.enqueued_at, claimed_at = excluded.claimed_at,
               finished_at = excluded.finished_at, worker = excluded.worker, attempt = excluded.attempt,
               retries = excluded.retries, crashes = excluded.crashes, runtime = null,
               priority = excluded.priority, state = excluded.state, task = excluded.task, queue = excluded.queue,
               args = excluded.args, kwargs = excluded.kwargs, headers = excluded.headers,
               options = excluded.options, history = excluded.history, steps = excluded.steps, value = null, error = excluded.error
        returning r.id
    ), member as (
        select row(s.step, e.place, e.id, e.state, e.id, e.depth, null, p_error)::pgqueue.part as part
          from ended e cross join lateral unnest(e.steps) s (step)
    ), report as (
        select f.call
          from ended e
         cross join lateral pgqueue.failure_calls(
               e.job, p_error, e.task = any(v_hooked) or '*' = any(v_hooked)) f (call)
         where e.state = 'FAILURE'
    )
    select v.id, v.task, v.state
      from verdict v, pgqueue.call_idle(array(select b.queue from verdict b where b.state = 'PENDING')) called,
           pgqueue.enqueue_errbacks((select json_agg(r.call) from report r)) reported,
           pgqueue.keep_calls(array(
               -- After their results are there.
               select e.job from ended e join stored s on s.id = e.id where e.root_id is not null)) kept,
           pgqueue.count_in(array(select m.part from member m)) counted;

    if exists (select from pgqueue.progress) then
        perform pgqueue.end_progress(array(
                select p.job from pgqueue.progress p
                 where p.worker = p_worker
                   and not exists (select from pgqueue.job j where j.id = p.job and j.worker = p_worker)));
    end if;

    if exists (select from pgqueue.waiter) then
        perform pg_notify('pgqueue.done', w.job::text)
           from (select distinct w.job from pgqueue.waiter w join pgqueue.result r on r.id = w.job
                  where r.worker = p_worker and r.finished_at = v_now) w;
    end if;
    delete from pgqueue.worker w
     where w.id = p_worker and not exists (select from pgqueue.job j where j.worker = p_worker);
    if not exists (select from pgqueue.worker w where w.id = p_worker) then
        delete from pgqueue.idle i where i.worker = p_worker;
    end if;
end
$$;
