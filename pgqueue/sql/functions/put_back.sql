-- Put a job back to be claimed again, as an outcome of its attempt says: RETRY, RELEASED, REQUEUE or REPLACED. Part of
-- finish, which tells what they mean. Answers the row; NULL if the fence refuses it, or REQUEUE has been said too often.
--   select pgqueue.put_back('<worker>', '{"id": "<job>", "attempt": 1, "state": "RETRY", "countdown": 5}', now());
create or replace function pgqueue.put_back(p_worker uuid, p_outcome json, p_now timestamptz) returns pgqueue.job
language plpgsql volatile
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off set lock_timeout = '2s'
as $$
declare
    v_new record;
    v_eta timestamptz;
    v_most integer;
    v_job pgqueue.job;
    v_plan json;
begin
    select * into v_new
      from json_to_record(p_outcome) as o (
           id uuid, attempt integer, state text, error json, eta timestamptz, countdown double precision, crashed boolean,
           most integer, task text, args json, kwargs json, queue text, priority smallint, expires timestamptz,
           headers json, options json, ignore_result boolean, time_limit real, soft_time_limit real, links json,
           errbacks json, plan json);
    v_eta := greatest(coalesce(v_new.eta, p_now + v_new.countdown * interval '1 second', p_now), p_now);
    if v_new.plan is not null then
        delete from pgqueue.job j
         where j.id = v_new.id and j.worker = p_worker and j.attempt = v_new.attempt
        returning j.* into v_job;
        if found and v_job.revoked then  -- just now: it is there again, to be revoked by whoever has called this
            insert into pgqueue.job select (v_job).*;
            update pgqueue.job j set worker = null, claimed_at = null where j.id = v_job.id returning j.* into v_job;
        elsif found then
            v_plan := pgqueue.plan_in_place(v_job, v_new.plan);
            perform pgqueue.enqueue_workflow(
                (select coalesce(json_agg(e.call), '[]') from json_array_elements(v_plan) e (call) where e.call ->> 'waits' is not null),
                (select coalesce(json_agg(e.call), '[]') from json_array_elements(v_plan) e (call) where e.call ->> 'waits' is null));
        end if;
        return v_job;
    end if;
    if v_new.state = 'REPLACED' then
        update pgqueue.job j
           set worker = null, claimed_at = null, eta = v_eta, retries = 0, requeues = 0, task = v_new.task,
               args = coalesce(v_new.args, '[]'), kwargs = coalesce(v_new.kwargs, '{}'),
               queue = coalesce(v_new.queue, j.queue), priority = coalesce(v_new.priority, j.priority),
               expires = v_new.expires, headers = v_new.headers, options = v_new.options,
               ignore_result = v_new.ignore_result, time_limit = v_new.time_limit,
               soft_time_limit = v_new.soft_time_limit,
               links = case when v_new.links is null then j.links
                            else pgqueue.concat_arrays(j.links, pgqueue.check_calls(v_new.links, 'links')) end,
               errbacks = case when v_new.errbacks is null then j.errbacks
                               else pgqueue.concat_arrays(j.errbacks, pgqueue.check_calls(v_new.errbacks, 'errbacks')) end
         where j.id = v_new.id and j.worker = p_worker and j.attempt = v_new.attempt
        returning j.* into v_job;
        return v_job;
    end if;
    v_most := case when v_new.state = 'REQUEUE' then least(coalesce(v_new.most, 100), 32767) else 32768 end;
    update pgqueue.job j
       set worker = null, claimed_at = null,
           eta = case when v_new.state = 'REQUEUE' and j.requeues > 0
                      then p_now + least(60, 0.1 * 2.0 ^ least(j.requeues - 1, 30)) * interval '1 second' else v_eta end,
           retries = j.retries + (v_new.state = 'RETRY')::integer,
           requeues = j.requeues + (v_new.state = 'REQUEUE')::integer,
           crashes = j.crashes + coalesce(v_new.crashed, false)::integer,
           error = coalesce(v_new.error, j.error),
           history = case when v_new.state <> 'RELEASED' or v_new.crashed
                          then pgqueue.remember(j.history, j.attempt, p_now,
                                                case when v_new.state = 'RELEASED' then 'CRASH' else v_new.state end,
                                                v_new.error)
                          else j.history end,
           args = coalesce(v_new.args, j.args), kwargs = coalesce(v_new.kwargs, j.kwargs),
           queue = coalesce(v_new.queue, j.queue), priority = coalesce(v_new.priority, j.priority),
           expires = coalesce(v_new.expires, j.expires), headers = coalesce(v_new.headers, j.headers),
           options = coalesce(v_new.options, j.options), ignore_result = coalesce(v_new.ignore_result, j.ignore_result),
           time_limit = coalesce(v_new.time_limit, j.time_limit),
           soft_time_limit = coalesce(v_new.soft_time_limit, j.soft_time_limit)
     where j.id = v_new.id and j.worker = p_worker and j.attempt = v_new.attempt and j.requeues < v_most
    returning j.* into v_job;
    return v_job;
end
$$;
